"""The shape of a transformer: one block (for every model of the house) and the causal language model around it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.nn.families import FAMILIES

# The bounds refuse a hostile config file before anything is allocated; no dense model is near them.
Size = Annotated[int, Field(ge=1, le=1 << 24)]
Depth = Annotated[int, Field(ge=1, le=4096)]
Positive = Annotated[float, Field(gt=0)]


@config
class RopeScaling:
    """The frequency scaling of Llama 3.1 that stretches a model's context; lengths are in tokens."""

    factor: Annotated[float, Field(ge=1)]
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_positions: Size

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"high_freq_factor {self.high_freq_factor} must exceed low_freq_factor {self.low_freq_factor}"
            )


@config
class BlockConfig:
    """The shape of one transformer block.

    `num_kv_heads` None means as many as `num_heads`; `head_dim` None means hidden_size / num_heads;
    `intermediate_size` None means 8/3 of hidden_size rounded up to a multiple of 16; `condition_size` None means no
    adaLN condition. `norm` and `mlp` name the layers: RMSNorm and SwiGLU, or the LayerNorm and GELU of image models.
    `inner_norm` puts a learned LayerNorm of its own into each sublayer of a conditioned block, after the modulated one.
    `dropout` acts in training on attention weights, on what attention writes and on both layers of the MLP.

    Raises:
        ConfigError: a size is not positive, heads do not divide, head_dim is odd, or dropout is no probability below 1.
    """

    hidden_size: Size
    num_heads: Size
    num_kv_heads: Size | None = None
    head_dim: Size | None = None
    intermediate_size: Size | None = None
    norm_eps: Positive = 1e-6
    qk_norm: bool = False
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    condition_size: Size | None = None
    norm: Literal["rms", "layer"] = "rms"
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    inner_norm: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                "change one of them or give head_dim"
            )
        if self.resolved_head_dim % 2:
            raise ConfigError(f"head_dim {self.resolved_head_dim} is odd; rotary positions need an even one")
        if self.num_heads % self.resolved_kv_heads:
            raise ConfigError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}; "
                "every key-value head serves the same number of query heads"
            )

    @property
    def resolved_kv_heads(self) -> int:
        """The number of key-value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def resolved_head_dim(self) -> int:
        """The width of one head."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def resolved_intermediate_size(self) -> int:
        """The width of the gated MLP's middle."""
        return 16 * -(-self.hidden_size // 6) if self.intermediate_size is None else self.intermediate_size


@config
class TransformerConfig:
    """The shape of a causal language model; the None fields mean what they mean in BlockConfig.

    `family` names the Hugging Face family the model is written as, and with it which biases and norms it may have:
    llama takes qkv_bias and attention_output_bias together and mlp_bias freely; qwen2 needs qkv_bias and nothing
    else; qwen3 needs qk_norm and takes the two attention biases together.

    Raises:
        ConfigError: a size is not positive, heads do not divide, or the family has no such bias or norm.
    """

    vocab_size: Size
    hidden_size: Size
    num_layers: Depth
    num_heads: Size
    family: Literal["llama", "qwen2", "qwen3"] = "llama"
    num_kv_heads: Size | None = None
    head_dim: Size | None = None
    intermediate_size: Size | None = None
    max_positions: Size = 1024
    rope_theta: Positive = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: Positive = 1e-6
    tie_embeddings: bool = True
    qk_norm: bool = False
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        _check_family(self)
        _ = self.block

    @property
    def resolved(self) -> TransformerConfig:
        """The same shape with every size written out; equal for configs that build the same model."""
        return dataclasses.replace(
            self,
            num_kv_heads=self.resolved_kv_heads,
            head_dim=self.resolved_head_dim,
            intermediate_size=self.resolved_intermediate_size,
        )

    @property
    def block(self) -> BlockConfig:
        """The shape of each of its blocks."""
        return BlockConfig(
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            norm_eps=self.norm_eps,
            qk_norm=self.qk_norm,
            qkv_bias=self.qkv_bias,
            attention_output_bias=self.attention_output_bias,
            mlp_bias=self.mlp_bias,
        )

    @property
    def resolved_kv_heads(self) -> int:
        """The number of key-value heads."""
        return self.block.resolved_kv_heads

    @property
    def resolved_head_dim(self) -> int:
        """The width of one head."""
        return self.block.resolved_head_dim

    @property
    def resolved_intermediate_size(self) -> int:
        """The width of the gated MLP's middle."""
        return self.block.resolved_intermediate_size


class ParameterCount(NamedTuple):
    """Numbers of parameters; `non_embedding` leaves out the token embedding and an untied output head."""

    total: int
    non_embedding: int


def num_parameters(config: TransformerConfig) -> ParameterCount:
    """Count the parameters of LanguageModel(config) by arithmetic, without building it."""
    block = config.block
    heads, kv_heads, width = block.num_heads, block.resolved_kv_heads, block.resolved_head_dim
    hidden, middle = block.hidden_size, block.resolved_intermediate_size
    biases = (
        block.qkv_bias * (heads + 2 * kv_heads) * width
        + block.attention_output_bias * hidden
        + block.mlp_bias * (2 * middle + hidden)
    )
    norms = 2 * hidden + block.qk_norm * 2 * width
    non_embedding = config.num_layers * (_block_matrices(block) + biases + norms) + hidden
    tables = 1 if config.tie_embeddings else 2
    return ParameterCount(non_embedding + tables * config.vocab_size * hidden, non_embedding)


def flops_per_token(config: TransformerConfig, context: int) -> int:
    """Return the floating-point operations of one forward pass for one token; training costs three times as many.

    2 P + 4 L H d C, with P the weights of all matrix products (projections, MLP, output head; the embedding look-up
    counts nothing), L layers, H heads of width d and a context of C tokens. This is the convention of PaLM
    (arXiv 2204.02311, appendix B): a multiply-add is two operations, and the attention term (scores, and weights
    times values) counts the whole context although a causal mask needs half of it.

    Raises:
        ConfigError: the context is not positive.
    """
    if context < 1:
        raise ConfigError(f"context {context} must be at least 1 token")
    block = config.block
    products = config.num_layers * _block_matrices(block) + config.vocab_size * config.hidden_size
    return 2 * products + 4 * config.num_layers * block.num_heads * block.resolved_head_dim * context


def _block_matrices(block: BlockConfig) -> int:
    attention = 2 * (block.num_heads + block.resolved_kv_heads) * block.resolved_head_dim
    return block.hidden_size * (attention + 3 * block.resolved_intermediate_size)


def _check_family(config: TransformerConfig) -> None:
    family = FAMILIES[config.family]
    if config.qk_norm != family.qk_norm:
        raise ConfigError(f"qk_norm={config.qk_norm} does not fit family {config.family!r}; set it {family.qk_norm}")
    biases = (config.qkv_bias, config.attention_output_bias)
    if family.attention_bias == "qkv" and biases != (True, False):
        raise ConfigError(f"family {config.family!r} needs qkv_bias=True and attention_output_bias=False")
    if family.attention_bias == "optional" and config.qkv_bias != config.attention_output_bias:
        raise ConfigError(
            f"family {config.family!r} has one switch for its attention biases; "
            "set qkv_bias and attention_output_bias alike"
        )
    if config.mlp_bias and not family.mlp_bias_allowed:
        raise ConfigError(f"family {config.family!r} has no mlp_bias; leave it False")
    if family.divisible_hidden and config.hidden_size % config.num_heads:
        raise ConfigError(
            f"hidden_size {config.hidden_size} is not a multiple of num_heads {config.num_heads}, "
            f"which family {config.family!r} requires"
        )
