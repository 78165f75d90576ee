"""Networks that no message codes: requential runs on MNIST, stochastic networks on the digits, and their controls.

    python benchmarks/studies/certify_uncoded.py --data ../shared/data [--only requential|stochastic]

Every row is a certificate by itself, verified in a fresh process that runs or draws everything again. A seed draws the
labels (requential) or orders the batches and draws first weights (stochastic); nothing was chosen by these rows.
"""

from __future__ import annotations

from typing import Any

from certify_common import STUDIES, Study, arguments, certified_row, summarise

NAME = "certify_uncoded"
SEEDS = (0, 1, 2)
FIGURES = ["bound", "train_risk", "bits.total", "cpu_seconds", "verify_cpu_seconds"]


def cells(quick: bool, mnist: str) -> list[tuple[dict[str, Any], list[str], str]]:
    """Return (key, flags, data) of every certificate."""
    real = ["digits"] if quick else ["mnist", "--data", mnist]
    wanted = [("requential", seed, False, real) for seed in SEEDS] + [("requential", 0, True, ["digits"])]
    wanted += [("stochastic", seed, False, ["digits"]) for seed in SEEDS] + [("stochastic", 0, True, ["digits"])]
    found: list[tuple[dict[str, Any], list[str], str]] = []
    for method, seed, control, subject in wanted:
        if not quick or seed == 0:
            key = {"method": method, "subject": subject[0], "seed": seed, "random_labels": control}
            flags = [*subject, "--method", method, "--seed", str(seed), *(["--random-labels"] if control else [])]
            found.append((key, [*flags, *(["--steps", "40"] if quick else [])], subject[-1]))
    return found


def main() -> None:
    """Certify, verify and summarise."""
    given = arguments(main.__doc__ or "")
    study = Study(given.out or STUDIES / f"{NAME}.json", NAME, {"quick": given.quick, "delta": 0.05})
    for key, flags, data in cells(given.quick, str(given.data / "images" / "mnist")):
        if given.only in (None, key["method"]):
            control = "-control" if key["random_labels"] else ""
            out = given.work / f"{NAME}{'-quick' if given.quick else ''}-{key['method']}-{key['seed']}{control}"
            source = str(out / "data.npz") if data == "digits" else data
            study.cell(key, lambda flags=flags, out=out, source=source: certified_row(flags, out, source))
    real = [row for row in study.rows if not row["random_labels"]]
    rows = {method: [row for row in real if row["method"] == method] for method in ("requential", "stochastic")}
    study.write(
        {
            method: summarise(found, [*FIGURES, "holdout.risk", "holdout.bound"])
            for method, found in rows.items()
            if found
        }
    )


if __name__ == "__main__":
    main()
