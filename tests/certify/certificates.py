"""Small honest certificates, made in milliseconds, for the tests of files, verification and attacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from forethought.certify import Certificate, DeltaLedger, Examples, Prior, Recipe, Tokens, issue
from forethought.certify.certificate import message_of
from forethought.certify.certificate.document import DOCUMENT, MESSAGE, document_bytes
from forethought.certify.codes import Segment, assign, fit_grid, fit_table
from forethought.certify.decoder import BaseRecipe, CodebookRecipe, SubspaceRecipe, TokenScoring
from forethought.certify.decoder.priors import NetworkRecipe
from forethought.core.rng import generator

LINEAR = Recipe(
    architecture="mlp",
    settings={"num_inputs": 12, "num_classes": 3, "hidden": []},
    base=BaseRecipe(kind="zeros"),
    subspace=SubspaceRecipe(kind="identity"),
    codebook=CodebookRecipe(levels=5),
)
HASHED = Recipe(
    architecture="conv",
    settings={"height": 4, "width": 3, "num_classes": 3, "channels": [4], "hidden": 8, "scale": 0.5},
    subspace=SubspaceRecipe(kind="hash", dimension=60, seed=3),
    codebook=CodebookRecipe(kind="grid", levels=8),
)
WINDOW = Recipe(
    architecture="window",
    settings={"vocab_size": 11, "context": 3, "embedding": 4, "hidden": 8},
    scoring=TokenScoring(vocab_size=11, context=3, batch_size=512),
    base=BaseRecipe(kind="zeros"),
    subspace=SubspaceRecipe(kind="identity"),
    codebook=CodebookRecipe(kind="grid", levels=16, per="tensor"),
)
TRANSFORMER = Recipe(
    architecture="transformer",
    settings={"vocab_size": 11, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_positions": 32},
    scoring=TokenScoring(vocab_size=11, context=16, smoothing=0.02, batch_size=8),
    subspace=SubspaceRecipe(kind="kronecker", dimension=100),
    codebook=CodebookRecipe(levels=7),
)


LINEAR_MAP = NetworkRecipe(architecture="mlp", settings={"num_inputs": 12, "num_classes": 3, "hidden": []})


def blobs(n: int = 1_200) -> Examples:
    """Three clouds in twelve dimensions that a linear map separates to a few percent."""
    rng = generator(0, "certificates.blobs")
    labels = rng.integers(0, 3, size=n)
    centres = rng.normal(size=(3, 12))
    return Examples((centres[labels] + rng.normal(size=(n, 12))).astype(np.float32), labels)


def text(n: int = 3_000) -> Tokens:
    """A chain of eleven tokens that mostly count upwards."""
    rng = generator(0, "certificates.text")
    return Tokens(np.cumsum(np.where(rng.random(n) < 0.8, 1, rng.integers(0, 11, size=n))) % 11)


def linear_certificate() -> tuple[Certificate, Examples]:
    """A linear classifier by class means, in 5 levels, under a prior that left the number of levels open."""
    data = blobs()
    means = np.stack([data.inputs[data.labels == k].mean(axis=0) for k in range(3)]).astype(float)
    numbers = np.concatenate([means.ravel(), -0.5 * np.square(means).sum(axis=1)])
    book = fit_table(numbers, 5)
    message = message_of(LINEAR, [Segment(assign(numbers, book), book)])
    prior = Prior(LINEAR, {"codebook.levels": [3, 5, 9, 17]})
    ledger = DeltaLedger(data.sha256, 0.05)
    return issue(prior, LINEAR, message, data, ledger=ledger, delta=0.05, reported={"test_risk": 0.07}), data


def drawn_certificate(recipe: Recipe) -> tuple[Certificate, Examples | Tokens]:
    """A network of random numbers in a recipe: worthless, and for that as checkable as any."""
    from forethought.certify.decoder import plan_of

    data = text() if isinstance(recipe.scoring, TokenScoring) else blobs()
    if recipe is HASHED and isinstance(data, Examples):
        data = Examples(data.inputs.reshape(-1, 4, 3), data.labels)
    rng = generator(1, "certificates.drawn")
    parts = []
    for count in plan_of(recipe).segments:
        numbers = rng.normal(size=count)
        fit = fit_table if recipe.codebook.kind == "table" else fit_grid
        book = fit(numbers, recipe.codebook.levels)
        parts.append(Segment(assign(numbers, book), book))
    ledger = DeltaLedger(data.sha256, 0.1)
    return issue(Prior(recipe), recipe, message_of(recipe, parts), data, ledger=ledger), data


def stochastic_certificate(directory: Path) -> tuple[Certificate, Examples]:
    """A Gaussian over a linear map, barely trained: a posterior, its draws, and what they say."""
    from forethought.certify.pacbayes import StochasticConfig, certify_stochastic

    data = blobs(400)
    settings = StochasticConfig(network=LINEAR_MAP, steps=40, batch_size=100, lr=5e-2, num_draws=30, checkpoint_every=0)
    return certify_stochastic(None, data, settings, directory, show=False).certificate, data


def requential_certificate(directory: Path | None = None, *, steps: int = 30) -> tuple[Certificate, Examples]:
    """A student of a teacher on the first fifth of the clouds as a pool, after a few steps."""
    from forethought.certify.requential import RequentialConfig, certify_requential

    data = blobs(500)
    settings = RequentialConfig(
        network=LINEAR_MAP,
        steps=steps,
        num_checkpoints=3,
        student_batch=20,
        teacher_batch=50,
        student_lr=3e-2,
        teacher_lr=1e-2,
        checkpoint_every=7,
        pool_is_independent=True,
    )
    found = certify_requential(None, data, 100, settings, directory=directory, show=False)
    return found.certificate, data


def rewrite(directory: Path, change: Callable[[dict[str, Any]], None], message: bytes | None = None) -> None:
    """Forge a saved certificate as well as a forger can: all hashes in it fit again."""
    values = json.loads((directory / DOCUMENT).read_bytes())
    if message is not None:
        (directory / MESSAGE).write_bytes(message)
        values["message"] = {"bytes": len(message), "sha256": hashlib.sha256(message).hexdigest()}
    change(values)
    (directory / DOCUMENT).write_bytes(document_bytes(values))
