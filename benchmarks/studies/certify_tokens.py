"""Token certificates from the command line: characters of Shakespeare and of novels by transformers.

    python benchmarks/studies/certify_tokens.py --data ../shared/data [--only novels-0|3-gram|...]

Seeds order the training, which the decoder never sees; one draw of delta covers all certificates of a text. The 3-gram
is interpolated Kneser-Ney of the training characters, on the test characters and on the first tenth of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from certify_common import STUDIES, Row, Study, arguments, certified_row, summarise

from forethought.app.certify.subjects import read_pair
from forethought.certify.certificate.data import Tokens
from forethought.certify.tokens_from_text import PRINTABLE
from forethought.stats.ngram import KneserNey

NAME = "certify_tokens"
SEEDS = (0, 1, 2)
SHAKESPEARE, NOVELS = Path("text_small/tinyshakespeare.txt.gz"), Path("text_general/novels100.jsonl.gz")
TRANSFORMER = ["--architecture", "transformer"]
PARTS: dict[str, tuple[Path, list[str], int | None]] = {
    "shakespeare": (SHAKESPEARE, TRANSFORMER, None),
    "novels": (NOVELS, TRANSFORMER, 12_000_000),
}
QUICK = ["--steps", "40", "--quantise-steps", "30"]
QUICK_TOKENS = 200_000


def main() -> None:
    """Certify, verify and summarise."""
    given = arguments(main.__doc__ or "")
    settings = {
        name: {"data": data.as_posix(), "flags": flags, "max_tokens": tokens}
        for name, (data, flags, tokens) in PARTS.items()
    }
    study = Study(given.out or STUDIES / f"{NAME}.json", NAME, settings)
    for name, (data, flags, tokens) in PARTS.items():
        path, limit = given.data / data, QUICK_TOKENS if given.quick else tokens
        extra = [*flags, *(["--max-tokens", str(limit)] if limit else []), *(QUICK if given.quick else [])]
        for seed in SEEDS[: 1 if given.quick else None]:
            if given.only in (None, name, f"{name}-{seed}"):
                out = given.work / f"{NAME}-{name}{'-quick' if given.quick else ''}-{seed}"
                run = ["text", "--data", str(path), "--seed", str(seed), *extra]
                study.cell({"text": name, "seed": seed}, lambda r=run, o=out: certified_row(r, o, str(o / "data.npz")))
        if given.only in (None, name, "3-gram"):
            study.cell({"text": name, "model": "3-gram"}, lambda p=path, n=limit: counted(p, n))
    study.write(summary(study.rows))


def counted(path: Path, limit: int | None) -> Row:
    """Return the 3-gram's own loss on the test characters, and on training ones, which flatters it."""
    train, test = read_pair("text", path, max_tokens=limit)
    if not isinstance(train, Tokens) or not isinstance(test, Tokens):
        raise SystemExit(f"{path} has no test text")
    model = KneserNey(len(PRINTABLE), order=3).fit(train.tokens)
    seen = train.tokens[: max(1, train.size // 10)]
    return {"test_loss": model.loss(test.tokens), "train_loss": model.loss(seen)}


def summary(rows: list[Row]) -> Row:
    """Return the figures of each text over its seeds."""
    names = ["bound", "train_risk", "test_loss", "trigram_loss", "bits.total", "trivial", "cpu_seconds"]
    made: dict[str, Any] = {}
    for name in PARTS:
        found = [row for row in rows if row["text"] == name and "seed" in row]
        if found:
            made[name] = summarise(found, names)
    return made


if __name__ == "__main__":
    main()
