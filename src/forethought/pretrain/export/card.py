"""The card of a model: what it was made of, how well it does and how sure that is, with a slot for a certificate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forethought.core import files

CARD = "CARD.md"


def model_card(result: Mapping[str, Any], *, name: str, recipe: str, certificate: Path | None = None) -> str:
    """Return a model card in Markdown from the result of a run; `certificate` is a file that bounds its test error."""
    corpus = result.get("corpus", {})
    leaks = corpus.get("leaks", {})
    rows = [f"| {key} | {value} |" for key, value in _figures(result).items()]
    lines = [
        f"# {name}",
        "",
        f"A language model of {result['parameters']:,} parameters ({result['parameters_non_embedding']:,} without "
        f"embeddings), trained with Forethought's recipe `{recipe}`.",
        "",
        "## Data",
        "",
        f"{result.get('train_tokens', result.get('train_tokens_seen', 0)):,} training tokens, "
        f"{result['epochs']:.3g} passes. {corpus.get('documents', 0):,} documents, {corpus.get('bytes', 0):,} bytes, "
        f"{corpus.get('duplicates_removed', 0):,} duplicates removed.",
        "",
        f"Leak check: held-out documents that share 13-grams with earlier splits, policy `{leaks.get('policy')}`; "
        f"leaked {leaks.get('leaked', 'not checked')}.",
        "",
        "## Figures",
        "",
        "| figure | value |",
        "|---|---|",
        *rows,
        "",
        "The tuning slice chose settings; the report slice chose nothing.",
        "",
        "## Certificate",
        "",
        "None." if certificate is None else f"`{certificate.name}` (SHA-256 {files.sha256_file(certificate)}).",
        "",
    ]
    return "\n".join(lines)


def write_card(directory: Path, result: Mapping[str, Any], *, recipe: str, certificate: Path | None = None) -> Path:
    """Write the card beside a run's models (`CARD.md` of a run directory) and return its path.

    Raises:
        StorageError: the disk refused.
    """
    path = directory / CARD
    card = model_card(result, name=directory.name, recipe=recipe, certificate=certificate)
    files.replace_file(path, card.encode())
    return path


def _figures(result: Mapping[str, Any]) -> dict[str, str]:
    figures: dict[str, str] = {}
    for member in result.get("members", ()):
        losses = f"{member['tune_loss']:.4f} tuning, {member['report_loss']:.4f} reported"
        own = f", seed {member['seed']}, wd {member['weight_decay']:.4g}" if "seed" in member else ""
        figures[str(member["name"])] = f"{losses} nats a token, {member['report_bits_per_byte']:.4f} bits a byte{own}"
    for name in ("validation", "test"):
        if f"{name}_loss" in result:
            interval = result.get(f"{name}_loss_interval")
            spread = "" if interval is None else f" (95 % {interval[0]:.4f} to {interval[1]:.4f})"
            figures[name] = f"{result[f'{name}_loss']:.4f} nats a token{spread}"
    return figures
