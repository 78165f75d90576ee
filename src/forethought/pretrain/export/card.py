"""The card of a model: what it was made of, how well it does and how sure that is, with a slot for a certificate.

Every model that this room makes carries its card as README.md, which Hugging Face tools show. A card holds no time and
no absolute place, so that equal runs give equal directories.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from forethought.core import files
from forethought.pretrain.export.slot import empty_slot

CARD = "README.md"
_HEADER = "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- forethought\n---\n"
_SETTINGS = (
    ("optimiser.name", "optimiser"),
    ("optimiser.lr", "learning rate"),
    ("optimiser.muon_lr", "learning rate of Muon"),
    ("loop.schedule.name", "schedule"),
    ("loop.precision", "precision"),
    ("batch_size", "windows a batch"),
    ("context", "tokens a window"),
)


def model_card(result: Mapping[str, Any], *, name: str, recipe: str, settings: Mapping[str, Any] | None = None) -> str:
    """Return the card in Markdown from a run's result and its config as plain values.

    `result` is what `fit` or `train_members` returns, or one member's part of it (`member_result`).
    """
    sections = (
        ("Data", _data(result)),
        ("Recipe", _recipe(result, recipe, settings or {})),
        ("Figures", _figures(result)),
        ("Leak check", _leaks(result.get("corpus", {}))),
    )
    lines = [
        f"# {name}",
        "",
        f"A language model of {result['parameters']:,} parameters ({result['parameters_non_embedding']:,} without "
        "embeddings), trained with Forethought.",
    ]
    for title, body in sections:
        lines += ["", f"## {title}", "", *body]
    return _HEADER + "\n".join([*lines, "", "## Certificate", "", empty_slot(), ""])


def write_card(directory: Path, result: Mapping[str, Any], *, recipe: str, ensemble: Mapping[str, Any] | None) -> Path:
    """Write the card of a whole run of members (README.md of its directory) and return its path.

    `ensemble` is what the members are worth together, as `pretrain ensemble` reports it.

    Raises:
        StorageError: the disk refused.
    """
    card = model_card({**result, "ensemble": ensemble}, name=directory.name, recipe=recipe)
    files.replace_file(directory / CARD, card.encode())
    return directory / CARD


def member_result(result: Mapping[str, Any], row: int, intervals: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return one member's part of a run's result; `intervals` are those of its loss on each held-out slice."""
    own = dict(result["members"][row])
    return {**result, "members": [{**own, "intervals": {key: list(value) for key, value in intervals.items()}}]}


def weights_note(directory: Path | str) -> str:
    """Return a model directory's name with the SHA-256 of its weights: what a teacher or a base is called on a card."""
    place = Path(directory) / "model" if (Path(directory) / "model").is_dir() else Path(directory)
    sums = [files.sha256_file(path)[:16] for path in sorted(place.glob("*.safetensors"))]
    return f"`{Path(directory).name}` (weights SHA-256 {', '.join(sums) or 'unknown'})"


def _data(result: Mapping[str, Any]) -> list[str]:
    corpus = result.get("corpus", {})
    sources = corpus.get("sources", {})
    names = ", ".join(f"`{Path(each).name}`" for each in sources.get("given", ()))
    splits = ", ".join(f"{name} {split.get('tokens', 0):,}" for name, split in corpus.get("splits", {}).items())
    lines = [
        f"{result.get('train_tokens', result.get('train_tokens_seen', 0)):,} training tokens "
        f"{'in all' if 'train_tokens' in result else 'seen'}, {result['epochs']:.3g} passes. "
        f"{corpus.get('documents', 0):,} documents of {corpus.get('bytes', 0):,} bytes, "
        f"{corpus.get('duplicates_removed', 0):,} duplicates removed; tokens by split: {splits or 'unknown'}."
    ]
    if names:
        lines.append(f"Sources: {names}, SHA-256 {sources.get('sha256', 'unknown')}.")
    if "vocab_size" in corpus:
        lines.append(
            f"Vocabulary: {corpus['vocab_size']:,} tokens, {corpus.get('bytes_per_token', 0):.3f} bytes a token, "
            f"tokenizer SHA-256 {corpus.get('tokenizer_sha256', 'unknown')}."
        )
    return lines


def _recipe(result: Mapping[str, Any], recipe: str, settings: Mapping[str, Any]) -> list[str]:
    rows: dict[str, object] = {"recipe": f"`{recipe}`", "steps": result.get("steps", "unknown")}
    for path, title in _SETTINGS:
        value: Any = settings
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and not (title.endswith("Muon") and rows.get("optimiser") != "muon"):
            rows[title] = value
    members = [member for member in result.get("members", ()) if "seed" in member]
    if members:
        rows["seeds"] = ", ".join(str(member["seed"]) for member in members)
    elif "seed" in result:
        rows["seeds"] = result["seed"]
    for name in ("weight_decay", "tau"):
        if result.get(name) is not None:
            rows[name.replace("_", " ")] = f"{result[name]:.4g}"
    rows |= {title: result[title] for title in ("teacher", "base", "mixture") if result.get(title)}
    return _table(("setting", "value"), rows.items())


def _figures(result: Mapping[str, Any]) -> list[str]:
    rows: list[tuple[str, str]] = []
    for member in result.get("members", ()):
        rows += _member_rows(member, alone=len(result["members"]) == 1)
    for name in ("validation", "test"):
        if f"{name}_loss" in result:
            bits = result.get(f"{name}_bits_per_byte")
            tail = "" if bits is None else f", {bits:.4f} bits a byte"
            loss = _spread(result[f"{name}_loss"], result.get(f"{name}_loss_interval"))
            rows.append((name, f"{loss}{tail}"))
    for name, title in (("unigram_loss", "unigram"), ("kneser_ney_5_loss", "5-gram Kneser-Ney")):
        if name in result:
            rows.append((f"baseline, {title}", f"{result[name]:.4f} nats a token"))
    ensemble = result.get("ensemble")
    if ensemble:
        count = len(ensemble["candidates"])
        rows.append((f"all {count} averaged", f"{ensemble['ensemble_loss']:.4f} nats a token (reported slice)"))
        weights = ", ".join(f"{weight:.3f}" for weight in ensemble["weights"].values())
        rows.append(("learned weights", f"{ensemble['weighted_loss']:.4f} nats a token, weights {weights}"))
    note = (
        "The tuning slice may have chosen settings; the reported slice chose nothing."
        if "members" in result
        else "Validation was watched while training; the test split chose nothing."
    )
    return [*_table(("figure", "value"), rows), "", f"Intervals are of 95 %, over windows of held-out text. {note}"]


def _member_rows(member: Mapping[str, Any], *, alone: bool) -> Iterator[tuple[str, str]]:
    prefix = "" if alone else f"{member['name']}, "
    intervals = member.get("intervals", {})
    own = f", seed {member['seed']}, wd {member['weight_decay']:.4g}" if "seed" in member and not alone else ""
    yield f"{prefix}tuning slice", f"{_spread(member['tune_loss'], intervals.get('tune'))}{own}"
    bits = f", {member['report_bits_per_byte']:.4f} bits a byte"
    yield f"{prefix}reported slice", f"{_spread(member['report_loss'], intervals.get('report'))}{bits}"


def _leaks(corpus: Mapping[str, Any]) -> list[str]:
    leaks = corpus.get("leaks")
    if not leaks:
        return ["Not checked."]
    checked, policy = leaks.get("checked", {}), leaks.get("policy", "")
    found = ", ".join(f"{count} of {checked.get(name, '?')} in {name}" for name, count in leaks["leaked"].items())
    done = {"drop": "these were dropped", "report": "these were left in", "refuse": "any would have been refused"}
    return [
        f"Held-out documents of which more than {100 * leaks.get('threshold', 0):g} % of the "
        f"{leaks.get('ngram', 13)}-grams stand in an earlier split: {found}; {done.get(policy, 'policy unknown')}."
    ]


def _spread(loss: float, interval: Sequence[float] | None) -> str:
    note = "" if interval is None or not math.isfinite(interval[0]) else f" ({interval[0]:.4f} to {interval[1]:.4f})"
    return f"{loss:.4f} nats a token{note}"


def _table(head: tuple[str, str], rows: Any) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *[f"| {key} | {value} |" for key, value in rows]]
