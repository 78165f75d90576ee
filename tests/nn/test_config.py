"""Configs refuse what cannot be built, and their arithmetic equals what is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from forethought.core.config import from_dict, to_dict
from forethought.core.errors import ConfigError
from forethought.nn import (
    BlockConfig,
    LanguageModel,
    RopeScaling,
    TransformerConfig,
    flops_per_token,
    num_parameters,
)

SHAPE: dict[str, Any] = {"vocab_size": 50, "hidden_size": 48, "num_layers": 2, "num_heads": 4}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_size": 50}, "multiple of num_heads"),
        ({"num_kv_heads": 3}, "multiple of num_kv_heads"),
        ({"head_dim": 7}, "odd"),
        ({"hidden_size": 12}, "odd"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_layers": -1}, "num_layers"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"family": "gpt2"}, "family"),
        ({"hiden_size": 48}, "hidden_size"),
        ({"qk_norm": True}, "qk_norm"),
        ({"qkv_bias": True}, "alike"),
        ({"family": "qwen2"}, "qkv_bias=True"),
        ({"family": "qwen3"}, "set it True"),
        ({"family": "qwen3", "qk_norm": True, "mlp_bias": True}, "no mlp_bias"),
        ({"hidden_size": 50, "head_dim": 8}, "requires"),
    ],
)
def test_a_bad_setting_is_named(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        TransformerConfig(**{**SHAPE, **changes})


def test_scaling_needs_its_factors_in_order() -> None:
    with pytest.raises(ConfigError, match="must exceed"):
        RopeScaling(factor=8.0, low_freq_factor=4.0, high_freq_factor=1.0, original_max_positions=64)


def test_none_fields_resolve() -> None:
    config = TransformerConfig(**SHAPE)
    assert (config.resolved_kv_heads, config.resolved_head_dim, config.resolved_intermediate_size) == (4, 12, 128)
    assert BlockConfig(hidden_size=256, num_heads=4).resolved_intermediate_size == 688  # 8/3 * 256 = 682.7
    explicit = TransformerConfig(**SHAPE, num_kv_heads=2, head_dim=16, intermediate_size=40)
    resolved = (explicit.resolved_kv_heads, explicit.resolved_head_dim, explicit.resolved_intermediate_size)
    assert resolved == (2, 16, 40)


def test_a_config_travels_as_json() -> None:
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64)
    config = TransformerConfig(**SHAPE, rope_scaling=scaling)
    assert from_dict(TransformerConfig, to_dict(config)) == config


@settings(deadline=None, max_examples=25)
@given(
    family=st.sampled_from(["llama", "qwen2", "qwen3"]),
    bias=st.booleans(),
    tied=st.booleans(),
    kv_heads=st.sampled_from([None, 1, 2, 4]),
    head_dim=st.sampled_from([None, 6, 16]),
    num_layers=st.integers(1, 3),
)
def test_counted_parameters_are_those_built(
    family: Any, bias: bool, tied: bool, kv_heads: int | None, head_dim: int | None, num_layers: int
) -> None:
    config = TransformerConfig(
        vocab_size=50,
        hidden_size=48,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        family=family,
        tie_embeddings=tied,
        qk_norm=family == "qwen3",
        qkv_bias=family == "qwen2" or bias,
        attention_output_bias=family != "qwen2" and bias,
        mlp_bias=family == "llama" and bias,
    )
    with torch.device("meta"):
        model = LanguageModel(config)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    tables = sum(number for name, number in counts.items() if "embedding" in name)
    assert num_parameters(config) == (sum(counts.values()), sum(counts.values()) - tables)


def test_counted_operations_are_those_run() -> None:
    config = TransformerConfig(**SHAPE, num_kv_heads=2, head_dim=16, max_positions=32)
    tokens_BT = torch.zeros(2, 32, dtype=torch.int64)
    model = LanguageModel(config).to("meta")
    with FlopCounterMode(display=False) as counter:
        model(tokens_BT.to("meta"))
    # The counter credits the causal kernel with the whole context, as the formula does.
    assert counter.get_total_flops() == 2 * 32 * flops_per_token(config, 32)


def test_context_of_the_operations_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        flops_per_token(TransformerConfig(**SHAPE), 0)
