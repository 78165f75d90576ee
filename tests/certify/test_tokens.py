"""`certify_tokens`: window models, transformers and modules of one's own, below the uniform law and verified."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from forethought.certify import verify
from forethought.certify.compress import CompressionConfig
from forethought.certify.decoder import (
    BaseRecipe,
    CodebookRecipe,
    LoraRecipe,
    Prior,
    Recipe,
    SubspaceRecipe,
    TokenScoring,
)
from forethought.certify.lint import AssumptionError
from forethought.certify.tokens import blocks, certify_tokens, windows
from forethought.certify.tokens_from_text import PRINTABLE, characters, read_characters
from forethought.certify.training import CertifySpec
from forethought.core.errors import DataError, InputError
from forethought.core.rng import generator

V = 8
QUICK = CompressionConfig(
    steps=100,
    quantise_steps=60,
    batch_size=48,
    lr=2e-2,
    quantise_lr=0.3,
    codebook_lr=0.1,
    thrift=(0.0,),
    checkpoint_every=0,
)


def walk(n: int = 20_000) -> np.ndarray:
    """Tokens that step up or down by one, mostly up: an entropy of about 0.5 nats against ln 8 = 2.08."""
    steps = np.where(generator(5, "test.walk").uniform(size=n) < 0.8, 1, -1)
    return (np.cumsum(steps) % V).astype(np.uint8)


def spec(architecture: str = "window", **changes: object) -> CertifySpec:
    settings = {"vocab_size": V, "context": 4, "embedding": 4, "hidden": 16}
    if architecture == "transformer":
        settings = {"vocab_size": V, "hidden_size": 8, "num_layers": 1, "num_heads": 1, "max_positions": 16}
    if architecture == "given":
        settings = {}
    recipe = Recipe(
        architecture=architecture,
        settings=settings,
        scoring=TokenScoring(vocab_size=V, context=4 if architecture == "window" else 16),
        base=BaseRecipe(kind="zeros"),
        subspace=SubspaceRecipe(kind="identity"),
        codebook=CodebookRecipe(kind="grid", levels=7, per="tensor"),
    )
    return CertifySpec(prior=Prior(recipe=dataclasses.replace(recipe, **changes)), training=QUICK)


@pytest.mark.parametrize("architecture", ["window", "transformer"])
def test_a_language_model_is_certified_below_the_uniform_law(architecture: str, tmp_path: Path):
    tokens = walk()
    found = certify_tokens(None, tokens[:18_000], spec(architecture), test=tokens[18_000:], show=False)
    result = found.certificate.document.result
    assert result.train_risk < found.bound < 0.95 * math.log(V)
    assert found.extra["test_loss"] == pytest.approx(result.train_risk, abs=0.2)
    assert found.extra["trigram_loss"] == pytest.approx(0.5, abs=0.05)
    found.save(tmp_path / "c")
    assert verify(tmp_path / "c", tokens[:18_000]).bound == pytest.approx(found.bound, abs=1e-12)


def test_a_low_rank_update_in_a_subspace_is_certified():
    lora = spec(
        "transformer",
        base=BaseRecipe(kind="seeded"),
        lora=LoraRecipe(rank=2, alpha=8.0),
        subspace=SubspaceRecipe(kind="kronecker", dimension=120),
        codebook=CodebookRecipe(levels=5),
    )
    found = certify_tokens(None, walk(), lora, show=False)
    assert found.bound < math.log(V)
    assert found.certificate.document.prior.recipe.subspace.dimension == 120


def test_a_module_of_ones_own_is_certified():
    class Bigram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(V, V)

        def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
            return self.table(tokens_BT)

    with torch.random.fork_rng(devices=[]):
        module = Bigram()
    found = certify_tokens(module, walk(), spec("given"), show=False)
    assert found.bound < 1.4  # one step back tells nearly all: the entropy is 0.5
    assert found.certificate.document.weights.count == V * V


def test_noise_is_vacuous():
    noise = generator(1, "test.noise").integers(0, V, 8000)
    assert certify_tokens(None, noise, spec(), show=False).vacuous


def test_dropout_in_a_module_is_refused_even_when_hidden():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(V, V)
            self.hidden = [nn.Dropout(0.5)]

        def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
            return self.hidden[0](self.table(tokens_BT))

    with torch.random.fork_rng(devices=[]):
        module = Odd()
    with pytest.raises(AssumptionError, match="dropout-in-train-mode"):
        certify_tokens(module, walk(), spec("given"), show=False)


def test_too_few_tokens_and_examples_in_their_place_are_refused():
    with pytest.raises(DataError, match="nothing to learn"):
        certify_tokens(None, walk(4), spec(), show=False)
    with pytest.raises(InputError, match="one array of token numbers"):
        certify_tokens(None, (np.zeros((3, 2)), np.zeros(3, int)), spec(), show=False)


def test_windows_and_blocks_hold_the_tokens_that_follow():
    tokens = np.arange(200, dtype=np.int64)
    contexts, following = windows(tokens, spec())(3)
    assert torch.equal(contexts[:, -1] + 1, following)
    inputs, targets = blocks(tokens, spec("transformer"))(3)
    assert torch.equal(inputs + 1, targets)


def test_characters_have_a_fixed_alphabet(tmp_path: Path):
    assert "".join(PRINTABLE[i] for i in characters("To be,\tor\n~ é")) == "To be, or\n~ ?"
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "odd.txt").write_bytes(b"\xff" * 2000)
    with pytest.raises(DataError, match="at least 1000"):
        read_characters(tmp_path / "short.txt")
    with pytest.raises(DataError, match="UTF-8"):
        read_characters(tmp_path / "odd.txt")
