"""The language model families that can be read and written: what sets each apart from the others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """One family as Hugging Face configs describe it.

    `attention_bias` is "optional" where one switch puts a bias on all four projections or on none, and "qkv" where
    query, key and value always have one and the output never has. `divisible_hidden` says that the hidden size must
    be a multiple of the number of heads even where head_dim is given. The defaults stand for keys that a config.json
    leaves out.
    """

    architecture: str
    qk_norm: bool
    attention_bias: str
    mlp_bias_allowed: bool
    divisible_hidden: bool
    default_max_positions: int
    default_head_dim: int | None


FAMILIES: dict[str, Family] = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        qk_norm=False,
        attention_bias="optional",
        mlp_bias_allowed=True,
        divisible_hidden=True,
        default_max_positions=2048,
        default_head_dim=None,
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        qk_norm=False,
        attention_bias="qkv",
        mlp_bias_allowed=False,
        divisible_hidden=False,
        default_max_positions=32768,
        default_head_dim=None,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        qk_norm=True,
        attention_bias="optional",
        mlp_bias_allowed=False,
        divisible_hidden=False,
        default_max_positions=32768,
        default_head_dim=128,
    ),
}
