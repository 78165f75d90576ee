"""Tiny random models of every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from forethought.core.rng import torch_generator
from forethought.nn import FAMILIES, LanguageModel, TransformerConfig

NEEDS: dict[str, dict[str, Any]] = {"llama": {}, "qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}


def make_config(family: str = "llama", **changes: Any) -> TransformerConfig:
    shape: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "intermediate_size": 48,
        "max_positions": 96,
    }
    return TransformerConfig(**{**shape, "family": family, **NEEDS[family], **changes})


def make_model(config: TransformerConfig, seed: int = 1) -> LanguageModel:
    """A model whose every tensor is away from its first value, so that no bias or scale is neutral."""
    model = LanguageModel(config, seed=seed).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=torch_generator(seed, f"test.{name}"))
            parameter.add_(noise * (0.2 if parameter.ndim > 1 else 0.3))
    return model


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., TransformerConfig]:
    return make_config


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., LanguageModel]:
    def build(family: str = "llama", seed: int = 1, **changes: Any) -> LanguageModel:
        return make_model(make_config(family, **changes), seed)

    return build


@pytest.fixture(scope="session")
def random_tokens() -> Callable[..., torch.Tensor]:
    def draw(*shape: int, vocab: int = 61, seed: int = 3) -> torch.Tensor:
        return torch.randint(0, vocab, shape, generator=torch_generator(seed, "test.tokens"))

    return draw
