"""Tiny real models for the decoding tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from forethought.core.rng import torch_generator
from forethought.nn import LanguageModel, TransformerConfig

Pair = tuple[LanguageModel, LanguageModel]


def make_model(vocab_size: int, seed: int, *, positions: int = 256) -> LanguageModel:
    """A random model of two layers in float64 whose laws are far from uniform."""
    config = TransformerConfig(
        vocab_size=vocab_size, hidden_size=16, num_layers=2, num_heads=2, max_positions=positions, tie_embeddings=False
    )
    model = LanguageModel(config, seed=seed).to(torch.float64).eval()
    with torch.no_grad():
        for block in model.blocks:
            for parameter in block.parameters():
                parameter.mul_(2.0 if parameter.ndim > 1 else 1.0)
        model.embedding.weight.mul_(20.0)
        assert model.unembedding is not None
        model.unembedding.weight.mul_(30.0)
    return model


def make_pair(vocab_size: int, seed: int, *, noise: float = 0.15, positions: int = 256) -> Pair:
    """A target and a draft that is the target with noise on its weights."""
    target = make_model(vocab_size, seed, positions=positions)
    draft = make_model(vocab_size, seed, positions=positions)
    random = torch_generator(seed, "test.noise")
    with torch.no_grad():
        for parameter in draft.parameters():
            kick = torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)
            parameter.add_(noise * parameter.std(correction=0) * kick)
    return target, draft


@pytest.fixture(scope="session")
def pair() -> Pair:
    """Target and draft over 32 tokens."""
    torch.set_num_threads(1)
    return make_pair(32, 0)


@pytest.fixture(scope="session")
def new_pair() -> Callable[..., Pair]:
    """Build a pair of another size."""
    torch.set_num_threads(1)
    return make_pair
