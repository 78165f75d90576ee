"""Named specifications: what each built-in example declares before its data, and what it tries.

The grids name all that was ever tried while these examples were made, not only what they train now: every value was a
choice that the data could have made, and is paid for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from forethought.app.certify.subjects import DIGITS, FILE, MNIST, TEXT
from forethought.certify.certificate.data import Data, Tokens
from forethought.certify.compress import CompressionConfig
from forethought.certify.decoder import (
    BaseRecipe,
    CodebookRecipe,
    Prior,
    Recipe,
    SubspaceRecipe,
    TokenScoring,
    ZeroOneScoring,
)
from forethought.certify.tokens_from_text import PRINTABLE
from forethought.certify.training import CertifySpec
from forethought.core.errors import InputError

CONTEXT = 8
MANY_TOKENS = 4_000_000


def digits() -> CertifySpec:
    """A small ReLU network on the 8 x 8 digits of scikit-learn, in seconds."""
    recipe = Recipe(
        architecture="mlp",
        settings={"num_inputs": 64, "num_classes": 10, "hidden": [64, 64], "shift": 0.0, "scale": 1.0},
        subspace=SubspaceRecipe(kind="hash", dimension=150),
        codebook=CodebookRecipe(levels=5),
    )
    choices: dict[str, list[Any]] = {
        "settings.hidden": [[64, 64], [32, 32], [128], [128, 64], [64, 64, 64]],
        "subspace.dimension": [100, 150, 200, 250],
        "codebook.levels": [3, 4, 5, 7],
    }
    return CertifySpec(
        prior=Prior(recipe=recipe, choices=choices),
        attempt={"settings.hidden": [[64, 64]], "subspace.dimension": [150], "codebook.levels": [5, 7]},
        training=CompressionConfig(steps=3000, quantise_steps=1500, batch_size=128, lr=2e-2),
    )


def mnist() -> CertifySpec:
    """A convolutional network of 52,138 weights on MNIST; under five minutes on one core."""
    recipe = Recipe(
        architecture="conv",
        settings={"height": 28, "width": 28, "num_classes": 10, "channels": [8, 16], "hidden": 64},
        subspace=SubspaceRecipe(kind="hash", dimension=1000),
        codebook=CodebookRecipe(levels=9),
        scoring=ZeroOneScoring(batch_size=1000),
    )
    choices: dict[str, list[Any]] = {
        "subspace.dimension": [500, 750, 1000, 1500],
        "codebook.levels": [3, 5, 7, 9],
        "settings.channels": [[8, 16], [16, 32]],
    }
    return CertifySpec(
        prior=Prior(recipe=recipe, choices=choices),
        attempt={"subspace.dimension": [1000], "codebook.levels": [9], "settings.channels": [[8, 16]]},
        training=CompressionConfig(
            steps=14_000, quantise_steps=8_000, batch_size=128, lr=3e-2, rate=0.1, thrift=(0.0,)
        ),
    )


def text() -> CertifySpec:
    """A character model of a window of 8 on any text, every tensor on a grid of its own."""
    recipe = Recipe(
        architecture="window",
        settings={"vocab_size": len(PRINTABLE), "context": CONTEXT, "embedding": 10, "hidden": 64},
        scoring=TokenScoring(vocab_size=len(PRINTABLE), context=CONTEXT, precision="float32"),
        base=BaseRecipe(kind="zeros"),
        subspace=SubspaceRecipe(kind="identity"),
        codebook=CodebookRecipe(kind="grid", levels=15, per="tensor"),
    )
    choices: dict[str, list[Any]] = {
        "settings.embedding": [8, 10, 12, 16],
        "settings.hidden": [32, 64, 96, 128],
        "codebook.levels": [7, 11, 15, 31],
    }
    return CertifySpec(
        prior=Prior(recipe=recipe, choices=choices),
        attempt={"settings.embedding": [10], "settings.hidden": [64], "codebook.levels": [15]},
        training=CompressionConfig(
            steps=9_000,
            quantise_steps=16_000,
            batch_size=512,
            lr=5e-3,
            quantise_lr=0.3,
            codebook_lr=0.1,
            thrift=(0.0, 0.02),
            checkpoint_every=2000,
        ),
    )


def transformer(
    vocab_size: int,
    *,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 2,
    context: int = 64,
    steps: tuple[int, int] = (3000, 2500),
) -> CertifySpec:
    """A transformer of forethought.nn, coded whole: for `certify run text --architecture transformer`."""
    recipe = Recipe(
        architecture="transformer",
        settings={
            "vocab_size": vocab_size,
            "hidden_size": hidden,
            "num_layers": layers,
            "num_heads": heads,
            "max_positions": context,
            "tie_embeddings": False,
        },
        scoring=TokenScoring(vocab_size=vocab_size, context=context, precision="float32"),
        base=BaseRecipe(kind="zeros"),
        subspace=SubspaceRecipe(kind="identity"),
        codebook=CodebookRecipe(kind="grid", levels=15, per="tensor"),
    )
    choices: dict[str, list[Any]] = {
        "codebook.levels": [7, 11, 15, 31],
        "settings.hidden_size": sorted({16, 24, 32, 48, 64, 96, hidden}),
        "settings.num_layers": sorted({1, 2, 3, 4, layers}),
    }
    training = CompressionConfig(
        steps=steps[0],
        quantise_steps=steps[1],
        batch_size=32,
        lr=1e-2,
        quantise_lr=0.3,
        codebook_lr=0.1,
        # The closed form that prices a bit overrates it twofold against the exact one, which the certificate prints.
        rate=0.5,
        thrift=(0.0,),
    )
    attempt = {"codebook.levels": [15], "settings.hidden_size": [hidden], "settings.num_layers": [layers]}
    return CertifySpec(prior=Prior(recipe=recipe, choices=choices), attempt=attempt, training=training)


def for_file(data: Data) -> CertifySpec:
    """Return a specification for a file of one's own: a small network for examples, a window model for tokens."""
    if isinstance(data, Tokens):
        spec, vocab_size = text(), int(data.tokens.max()) + 1
        recipe = spec.prior.recipe
        scoring = TokenScoring(vocab_size=vocab_size, context=CONTEXT, precision="float32")
        settings = {**recipe.settings, "vocab_size": vocab_size}
        prior = Prior(dataclasses.replace(recipe, settings=settings, scoring=scoring), spec.prior.choices)
        return dataclasses.replace(spec, prior=prior)
    spec, recipe = digits(), digits().prior.recipe
    sizes = {"num_inputs": math.prod(data.inputs.shape[1:]), "num_classes": int(data.labels.max()) + 1}
    prior = Prior(dataclasses.replace(recipe, settings={**recipe.settings, **sizes}), spec.prior.choices)
    return dataclasses.replace(spec, prior=prior)


def spec_of(subject: str, data: Data, architecture: str) -> CertifySpec:
    """Return the specification of a subject.

    Raises:
        InputError: the architecture does not go with the data.
    """
    if architecture == "transformer":
        if not isinstance(data, Tokens):
            raise InputError("a transformer is certified on text or tokens; leave --architecture out for examples")
        size = len(PRINTABLE) if subject == TEXT else int(data.tokens.max()) + 1
        if data.size < MANY_TOKENS:  # fewer tokens carry fewer bits, and a small model learns them more often
            return transformer(size, hidden=16, steps=(4500, 4000))
        return transformer(size)
    return SPECS[subject]() if subject in SPECS else for_file(data)


SPECS: dict[str, Callable[[], CertifySpec]] = {DIGITS: digits, MNIST: mnist, TEXT: text}
SUBJECTS = (*SPECS, FILE)
