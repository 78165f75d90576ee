"""Multi-head attention with grouped key-value heads, rotary positions, optional QK-norm and a cache.

Legend: B batch, T query tokens, S key tokens, H query heads, K key-value heads, D model width (of a head in BTHD).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from forethought.nn.cache import KeyValueCache
from forethought.nn.config import BlockConfig
from forethought.nn.layers import Linear, RMSNorm
from forethought.nn.mask import resolve_mask
from forethought.nn.rotary import Rotation, rotate


class Attention(nn.Module):
    """Self-attention; `layer` is its number in the cache."""

    def __init__(self, config: BlockConfig, layer: int = 0) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_heads, config.resolved_kv_heads
        self.head_dim = width = config.resolved_head_dim
        # Three projections, not one fused: at training shapes fusing saved 2 to 3 % of this product on two cores, and
        # apart they are the matrices of the checkpoint and of a matrix optimiser.
        self.query = Linear(config.hidden_size, self.num_heads * width, bias=config.qkv_bias)
        self.key = Linear(config.hidden_size, self.num_kv_heads * width, bias=config.qkv_bias)
        self.value = Linear(config.hidden_size, self.num_kv_heads * width, bias=config.qkv_bias)
        self.output = Linear(self.num_heads * width, config.hidden_size, bias=config.attention_output_bias)
        self.query_norm = RMSNorm(width, config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(width, config.norm_eps) if config.qk_norm else None
        self.dropout = config.dropout

    def forward(
        self,
        x_BTD: Tensor,
        *,
        rotary: Rotation | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return the attended x_BTD.

        Raises:
            InputError: the mask does not fit, or the cache refuses the new keys.
        """
        dropout = self.dropout if self.training else 0.0
        if x_BTD.shape[1] == 1 and cache is None and mask is None and not dropout:
            return self.output(self._lone_value(x_BTD))
        q_BTHD = self.query(x_BTD).unflatten(-1, (self.num_heads, self.head_dim))
        k_BTKD = self.key(x_BTD).unflatten(-1, (self.num_kv_heads, self.head_dim))
        v_BTKD = self.value(x_BTD).unflatten(-1, (self.num_kv_heads, self.head_dim))
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHD, k_BTKD = self.query_norm(q_BTHD), self.key_norm(k_BTKD)
        if rotary is not None:
            # Under autocast the rotation is fp32 and would widen queries and keys beyond the values' type.
            q_BTHD = rotate(q_BTHD, rotary).to(v_BTKD.dtype)
            k_BTKD = rotate(k_BTKD, rotary).to(v_BTKD.dtype)
        q_BHTD, k_BKSD, v_BKSD = (each.transpose(1, 2) for each in (q_BTHD, k_BTKD, v_BTKD))
        if cache is not None:
            k_BKSD, v_BKSD = cache.append(self.layer, k_BKSD, v_BKSD)
        mask, causal = resolve_mask(
            mask,
            causal=causal,
            batch=x_BTD.shape[0],
            num_heads=self.num_heads,
            num_queries=x_BTD.shape[1],
            num_keys=k_BKSD.shape[2],
            device=x_BTD.device,
        )
        # enable_gqa saves the copy that repeating the key-value heads would take.
        attended_BHTD = functional.scaled_dot_product_attention(
            q_BHTD,
            k_BKSD,
            v_BKSD,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=causal,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        written_BTD = self.output(attended_BHTD.transpose(1, 2).flatten(2))
        return functional.dropout(written_BTD, dropout) if dropout else written_BTD

    def _lone_value(self, x_BTD: Tensor) -> Tensor:
        """Return the values of single tokens: a softmax over one key is 1, so a planner's rollout needs no scores."""
        value_BTD = self.value(x_BTD)
        repeats = self.num_heads // self.num_kv_heads
        if repeats == 1:
            return value_BTD
        return value_BTD.unflatten(-1, (self.num_kv_heads, self.head_dim)).repeat_interleave(repeats, dim=2).flatten(2)
