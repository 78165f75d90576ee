"""The one transformer block of the house: language model, image encoder, predictor and denoiser are made of it.

Pre-norm: x + attention(norm(x)), then x + mlp(norm(x)), with RMSNorm and a SwiGLU MLP (arXiv 2002.05202). What differs
between models is an argument: rotary positions or none, causal or not, a mask, a cache, an adaLN condition; and, for
weights that were trained elsewhere, LayerNorm and a plain GELU MLP.

Legend: B batch, T tokens, D model width, C condition width.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from forethought.core.errors import InputError
from forethought.nn.attention import Attention
from forethought.nn.cache import KeyValueCache
from forethought.nn.config import BlockConfig
from forethought.nn.layers import Linear, RMSNorm
from forethought.nn.rotary import Rotation


class GatedMLP(nn.Module):
    """The SwiGLU feed-forward layer, down(silu(gate(x)) * up(x))."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        middle = config.resolved_intermediate_size
        self.gate = Linear(config.hidden_size, middle, bias=config.mlp_bias)
        self.up = Linear(config.hidden_size, middle, bias=config.mlp_bias)
        self.down = Linear(middle, config.hidden_size, bias=config.mlp_bias)
        self.dropout = config.dropout

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map every token by itself."""
        middle = functional.silu(self.gate(x_BTD)) * self.up(x_BTD)
        if self.dropout and self.training:
            return functional.dropout(self.down(functional.dropout(middle, self.dropout)), self.dropout)
        return self.down(middle)


class PlainMLP(nn.Module):
    """The feed-forward layer of the first transformers, down(gelu(up(x))), with dropout after both."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        middle = config.resolved_intermediate_size
        self.dropout = config.dropout
        self.up = Linear(config.hidden_size, middle, bias=config.mlp_bias)
        self.down = Linear(middle, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map every token by itself."""
        middle = functional.dropout(functional.gelu(self.up(x_BTD)), self.dropout, self.training)
        return functional.dropout(self.down(middle), self.dropout, self.training)


def build_norm(config: BlockConfig, *, learned_scale: bool = True) -> RMSNorm | nn.LayerNorm:
    """Return the norm that a config names."""
    if config.norm == "rms":
        return RMSNorm(config.hidden_size, config.norm_eps, learned_scale=learned_scale)
    return nn.LayerNorm(config.hidden_size, config.norm_eps, elementwise_affine=learned_scale)


class Modulation(nn.Module):
    """adaLN-zero of DiT (arXiv 2212.09748, section 3.2): a condition becomes shift, scale and gate of two sublayers.

    Its weights start at zero, so the gates are closed and the block is the identity before training.
    """

    def __init__(self, condition_size: int, hidden_size: int) -> None:
        super().__init__()
        self.projection = Linear(condition_size, 6 * hidden_size)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Return six tensors [B, 1 or T, D] for a condition [B, C] of each row or [B, T, C] of each token."""
        per_token = condition if condition.ndim == 3 else condition[:, None]
        return self.projection(functional.silu(per_token)).chunk(6, dim=-1)


class Block(nn.Module):
    """One transformer block; `layer` is its number in a cache."""

    def __init__(self, config: BlockConfig, layer: int = 0) -> None:
        super().__init__()
        conditioned = config.condition_size is not None
        # With a condition the learned scale of the norm would only repeat the condition's own.
        self.attention_norm = build_norm(config, learned_scale=not conditioned)
        self.attention = Attention(config, layer)
        self.mlp_norm = build_norm(config, learned_scale=not conditioned)
        # Language models, whose parts other code reads by name, are always gated; hence the declared type.
        self.mlp = GatedMLP(config) if config.mlp == "swiglu" else cast(GatedMLP, PlainMLP(config))
        inner = conditioned and config.inner_norm
        self.attention_inner_norm = nn.LayerNorm(config.hidden_size) if inner else None
        self.mlp_inner_norm = nn.LayerNorm(config.hidden_size) if inner else None
        self.modulation = Modulation(config.condition_size, config.hidden_size) if config.condition_size else None

    def forward(
        self,
        x_BTD: Tensor,
        *,
        rotary: Rotation | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        condition: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return the block's output for x_BTD.

        `rotary` comes from forethought.nn.Rotary or is None for models that add their own positions; `mask` is boolean
        (True = attend), of shape TS, BTS or BHTS; `causal` hides later tokens; `condition` is [B, C] or [B, T, C].

        Raises:
            InputError: a condition is given to a block built without, or is missing; the mask or cache does not fit.
        """
        if (condition is None) != (self.modulation is None):
            raise InputError(
                f"the block was built {'without' if self.modulation is None else 'with'} condition_size and called "
                f"{'without' if condition is None else 'with'} a condition; give one exactly when it is set"
            )
        if condition is None or self.modulation is None:
            x_BTD = x_BTD + self.attention(
                self.attention_norm(x_BTD), rotary=rotary, mask=mask, causal=causal, cache=cache
            )
            return x_BTD + self.mlp(self.mlp_norm(x_BTD))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)
        normed_BTD = self.attention_norm(x_BTD) * (1 + scale) + shift
        if self.attention_inner_norm is not None:
            normed_BTD = self.attention_inner_norm(normed_BTD)
        x_BTD = x_BTD + gate * self.attention(normed_BTD, rotary=rotary, mask=mask, causal=causal, cache=cache)
        normed_BTD = self.mlp_norm(x_BTD) * (1 + mlp_scale) + mlp_shift
        if self.mlp_inner_norm is not None:
            normed_BTD = self.mlp_inner_norm(normed_BTD)
        return x_BTD + mlp_gate * self.mlp(normed_BTD)
