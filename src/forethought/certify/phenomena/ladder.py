"""Compressibility and bound against model size: token certificates of our own transformers on one fixed text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forethought.certify.compress import CompressionConfig
from forethought.certify.decoder import BaseRecipe, CodebookRecipe, Prior, Recipe, SubspaceRecipe, TokenScoring
from forethought.certify.phenomena.outcome import Budget, Outcome, Panel, Rows, ends_of, judged
from forethought.certify.tokens import certify_tokens, counting_losses
from forethought.certify.tokens_from_text import PRINTABLE, characters
from forethought.certify.training import CertifySpec
from forethought.data.stdlib import stdlib_files

WIDTHS = (4, 8, 12, 16, 24, 32, 48, 64)
"""Every width that a ladder may have: the prior's grid, so that the best rung is paid for too."""
CONTEXT, LEVELS = 32, 15
FIGURES = ("parameters", "bits", "bits a parameter", "train loss", "test loss", "certificate")
Cell = Sequence[float]


@dataclass(frozen=True)
class LadderEffort:
    """What one ladder costs: training tokens, steps of both phases, seeds and widths."""

    tokens: int
    steps: int
    quantise_steps: int
    num_seeds: int
    widths: tuple[int, ...]


_EFFORTS: dict[Budget, LadderEffort] = {
    "smoke": LadderEffort(200_000, 150, 80, 1, (4, 8, 12, 16, 24)),
    "full": LadderEffort(500_000, 900, 500, 2, (8, 16, 24, 32, 48, 64)),
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
    prior = Prior(recipe=recipe, choices={"settings.hidden_size": list(WIDTHS)})
    return CertifySpec(prior=prior, attempt={"settings.hidden_size": [width]}, training=training)


def model_ladder(budget: Budget, seed: int) -> Outcome:
    """Train, quantise and certify a ladder of transformers at one number of steps on one text."""
    effort = _EFFORTS[budget]
    text = library_text(effort.tokens + effort.tokens // 10)
    train, test = text[: effort.tokens], text[effort.tokens :]
    cells = {
        width: [ladder_cell(width, effort, train, test, seed + repeat) for repeat in range(effort.num_seeds)]
        for width in effort.widths
    }
    where = "Python's library; the test text is its next part and another law, so the test loss is only indicative"
    return ladder_outcome(cells, effort, counting_losses(train, test, len(PRINTABLE)), where, budget, seed)


def ladder_outcome(
    cells: Mapping[int, Sequence[Cell]],
    effort: LadderEffort,
    counted: Mapping[str, float],
    where: str,
    budget: Budget,
    seed: int,
) -> Outcome:
    """Return the picture and tables of cells width -> [seed][FIGURES]; `counted` holds the 3-gram's own loss.

    Larger means better only if the certificate of the best width is below the narrowest one's in every sense that the
    seeds allow: with three of them, by the 95 % interval of the difference paired by seed. The same for the turn.
    """
    widths = sorted(cells)
    means = {width: np.mean(np.array(cells[width]), axis=0) for width in widths}
    bounds = {width: [cell[-1] for cell in cells[width]] for width in widths}
    best = min(widths, key=lambda width: means[width][-1])
    margins, holds = judged({
        "every certificate is below the uniform law": [
            math.log(len(PRINTABLE)) - max(each) for each in zip(*bounds.values(), strict=True)],
        f"width {best} certifies better than width {widths[0]}, the narrowest": _over(bounds, widths[0], best),
        f"it has turned: width {widths[-1]}, the widest, certifies worse than width {best}": _over(
            bounds, widths[-1], best),
        "bits a parameter are fewer in the widest than in the narrowest": [
            a[2] - b[2] for a, b in zip(cells[widths[0]], cells[widths[-1]], strict=True)],
    })  # fmt: skip
    x = [float(means[width][0]) for width in widths]
    lines = {FIGURES[i]: (x, [float(means[width][i]) for width in widths]) for i in (2, 3, 4, 5)}
    turned = widths[0] < best < widths[-1]
    return Outcome(
        "model-ladder",
        "Larger models certify better, until the bits overtake",
        f"Transformers of two blocks on {effort.tokens:,} characters of {where}. {effort.steps} + "
        f"{effort.quantise_steps} steps each. Certificate (95 %) and bits a parameter against size, at fixed data: "
        + (f"the best has width {best} and the certificate worsens beyond." if turned
           else f"the best of these has width {best}, at the end of the ladder; it has not turned within it."),
        budget,
        seed,
        [
            Panel("loss and certificate", "parameters", "nats a token", {name: lines[name] for name in FIGURES[3:]},
                  log_x=True, levels={"uniform": math.log(len(PRINTABLE)), "3-gram": counted["trigram_loss"]}),
            Panel("compressibility", "parameters", "bits a parameter", {FIGURES[2]: lines[FIGURES[2]]}, log_x=True),
        ],
        [
            Rows("means over seeds", ["width", *FIGURES], [[width, *means[width].tolist()] for width in widths]),
            ends_of("95 % intervals over seeds", ["width"], FIGURES, cells),
            margins,
        ],
        holds,
        {"tokens": effort.tokens, "steps": effort.steps, "quantised steps": effort.quantise_steps, "levels": LEVELS,
         "seeds": effort.num_seeds, "trigram loss": round(counted["trigram_loss"], 4)},
    )  # fmt: skip


def ladder_cell(width: int, effort: LadderEffort, train: np.ndarray, test: np.ndarray, seed: int) -> list[float]:
    """Return the FIGURES of one rung under one order of training."""
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


def _over(bounds: Mapping[int, Sequence[float]], worse: int, better: int) -> list[float]:
    return [a - b for a, b in zip(bounds[worse], bounds[better], strict=True)]
