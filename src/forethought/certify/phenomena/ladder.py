"""Compressibility and bound against model size: token certificates of our own transformers on one fixed text."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from forethought.certify.compress import CompressionConfig
from forethought.certify.decoder import BaseRecipe, CodebookRecipe, Prior, Recipe, SubspaceRecipe, TokenScoring
from forethought.certify.phenomena.outcome import Budget, Outcome, Panel, Rows
from forethought.certify.tokens import certify_tokens, counting_losses
from forethought.certify.tokens_from_text import PRINTABLE, characters
from forethought.certify.training import CertifySpec
from forethought.data.stdlib import stdlib_files

WIDTHS = (8, 16, 24, 32, 48)
CONTEXT, LEVELS = 32, 15


@dataclasses.dataclass(frozen=True)
class _Effort:
    tokens: int
    steps: int
    quantise_steps: int
    num_seeds: int
    widths: tuple[int, ...]


_EFFORTS: dict[Budget, _Effort] = {
    "smoke": _Effort(200_000, 150, 80, 1, (4, 8, 12, 16, 24)),
    "full": _Effort(500_000, 900, 500, 2, (*WIDTHS, 64)),
}


def ladder_spec(width: int, training: CompressionConfig) -> CertifySpec:
    """Return the specification of one rung; the widths stand in the prior's grid, so the best rung is paid for too."""
    recipe = Recipe(
        architecture="transformer",
        settings={
            "vocab_size": len(PRINTABLE),
            "hidden_size": width,
            "num_layers": 2,
            "num_heads": 2,
            "max_positions": CONTEXT,
            "tie_embeddings": False,
        },
        scoring=TokenScoring(vocab_size=len(PRINTABLE), context=CONTEXT, precision="float32", batch_size=256),
        base=BaseRecipe(kind="zeros"),
        subspace=SubspaceRecipe(kind="identity"),
        codebook=CodebookRecipe(kind="grid", levels=LEVELS, per="tensor"),
    )
    widths = [4, 8, 12, 16, 24, 32, 48, 64]
    prior = Prior(recipe=recipe, choices={"settings.hidden_size": widths})
    return CertifySpec(prior=prior, attempt={"settings.hidden_size": [width]}, training=training)


def model_ladder(budget: Budget, seed: int) -> Outcome:
    """Train, quantise and certify a ladder of transformers at one number of steps on one text."""
    effort = _EFFORTS[budget]
    text = library_text(effort.tokens + effort.tokens // 10)
    train, test = text[: effort.tokens], text[effort.tokens :]
    rows: list[list[float]] = []
    spreads: list[list[float]] = []
    for width in effort.widths:
        cells = [_one(width, effort, train, test, seed + repeat) for repeat in range(effort.num_seeds)]
        rows.append([width, *np.mean(np.array(cells), axis=0).tolist()])
        spreads.append([width, *(np.ptp(np.array(cells), axis=0) / 2).tolist()])
    columns = ["width", "parameters", "bits", "bits a parameter", "train loss", "test loss", "certificate"]
    x = [row[1] for row in rows]
    losses = {columns[i]: (x, [row[i] for row in rows]) for i in (4, 5, 6)}
    best = min(rows, key=lambda row: row[6])
    counted = counting_losses(train, test, len(PRINTABLE))
    turned = best[0] not in (rows[0][0], rows[-1][0])
    tables = [Rows("means over seeds", columns, rows)]
    if effort.num_seeds > 1:
        tables.append(Rows("half of the range over seeds", columns, spreads))
    return Outcome(
        "model-ladder",
        "Larger models certify better, until the bits overtake",
        f"Transformers of two blocks on {effort.tokens:,} characters of Python's library, {effort.steps} + "
        f"{effort.quantise_steps} steps each. Bits a parameter and the certificate (95 %) against size, at fixed data; "
        "the test text is the next part of the library and another law, so its loss is only indicative: "
        + (f"the best has width {best[0]:.0f} and the certificate worsens beyond." if turned
           else f"the best of these has width {best[0]:.0f}, at the end of the ladder; it has not turned within it."),
        budget,
        seed,
        [
            Panel("loss and certificate", "parameters", "nats a token", losses, log_x=True,
                  levels={"uniform": math.log(len(PRINTABLE)), "3-gram": counted["trigram_loss"]}),
            Panel("compressibility", "parameters", "bits a parameter", {columns[3]: (x, [row[3] for row in rows])},
                  log_x=True),
        ],
        tables,
        {
            "every certificate is below the uniform law": max(row[6] for row in rows) < math.log(len(PRINTABLE)),
            "a wider model certifies better than the narrowest": best[0] > rows[0][0],
            "bits a parameter fall with size": rows[-1][3] < rows[0][3],
        },
        {"tokens": effort.tokens, "steps": effort.steps, "levels": LEVELS, "seeds": effort.num_seeds,
         "trigram loss": round(counted["trigram_loss"], 4)},
    )  # fmt: skip


def library_text(num_characters: int) -> np.ndarray:
    """Return the first characters of the source of Python's own library, in its fixed order, as tokens."""
    parts: list[np.ndarray] = []
    total = 0
    for source in stdlib_files():
        parts.append(characters(source.path.read_text(encoding="utf-8", errors="replace")))
        total += len(parts[-1])
        if total >= num_characters:
            break
    return np.concatenate(parts)[:num_characters]


def _one(width: int, effort: _Effort, train: np.ndarray, test: np.ndarray, seed: int) -> list[float]:
    training = CompressionConfig(
        steps=effort.steps,
        quantise_steps=effort.quantise_steps,
        batch_size=64,
        lr=1e-2,
        quantise_lr=0.3,
        codebook_lr=0.1,
        thrift=(0.0,),
        seed=seed,
        checkpoint_every=0,
    )
    found = certify_tokens(None, train, ladder_spec(width, training), test=test, show=False)
    document = found.certificate.document
    size, bits = document.weights.count, document.bits.total
    return [size, bits, bits / size, document.result.train_risk, float(found.extra["test_loss"] or 0.0), found.bound]
