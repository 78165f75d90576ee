"""The causal language model: embedding, blocks, norm, head.

Legend: B batch, T tokens of this call, S cached tokens and those of this call, D model width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from forethought.core.errors import InputError
from forethought.nn.block import Block
from forethought.nn.cache import DenseCache, KeyValueCache
from forethought.nn.config import TransformerConfig
from forethought.nn.initialise import initialise
from forethought.nn.layers import Embedding, Linear, RMSNorm
from forethought.nn.mask import resolve_mask
from forethought.nn.rotary import Rotary


class LanguageModel(nn.Module):
    """A Llama, Qwen2 or Qwen3 by its config; weights are drawn from `seed`, except on the meta device."""

    def __init__(self, config: TransformerConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config.block, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.unembedding = None if config.tie_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rotary = Rotary(config.resolved_head_dim, config.rope_theta, config.rope_scaling)
        if not self.embedding.weight.is_meta:
            initialise(self, seed)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        cache: KeyValueCache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        logits_to_keep: int | None = None,
    ) -> Tensor:
        """Return logits_BTV, or logits of the last `logits_to_keep` tokens only.

        The arguments are those of `hidden`.

        Raises:
            InputError: as `hidden`, or logits_to_keep is not positive.
        """
        # Before the pass, which would commit the tokens to the cache.
        if logits_to_keep is not None and logits_to_keep < 1:
            raise InputError(f"logits_to_keep {logits_to_keep} must be at least 1, or None for all")
        x_BTD = self.hidden(tokens_BT, cache=cache, mask=mask, positions=positions)
        if logits_to_keep is not None:
            x_BTD = x_BTD[:, -logits_to_keep:]
        return self.head(x_BTD)

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        cache: KeyValueCache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return x_BTD after the last norm, from which `head` makes logits.

        With a cache, the tokens follow the cached ones and are committed to it. `mask` (True = attend; shape TS, BTS
        or BHTS) narrows the causal mask, for documents, padding or token trees. `positions` is [T] or [B, T]; without
        it the tokens are numbered on from the cache's length.

        Raises:
            InputError: the tokens are not a 2-D integer tensor, do not fit the context or the cache, or the mask or
                positions do not fit.
        """
        past = 0 if cache is None else cache.length
        positions = self._check(tokens_BT, positions, past)
        num_tokens = tokens_BT.shape[1]
        x_BTD = self.embedding(tokens_BT)
        rotation = self.rotary(positions, x_BTD.dtype)
        mask, causal = resolve_mask(
            mask,
            causal=True,
            batch=tokens_BT.shape[0],
            num_heads=self.config.num_heads,
            num_queries=num_tokens,
            num_keys=past + num_tokens,
            device=tokens_BT.device,
        )
        for block in self.blocks:
            x_BTD = block(x_BTD, rotary=rotation, mask=mask, causal=causal, cache=cache)
        if cache is not None:
            cache.commit(num_tokens)
        return self.norm(x_BTD)

    def head(self, x_BTD: Tensor) -> Tensor:
        """Return logits_BTV of normed hidden states."""
        if self.unembedding is None:
            return functional.linear(x_BTD, self.embedding.weight)
        return self.unembedding(x_BTD)

    def new_cache(self, batch_size: int, capacity: int | None = None) -> DenseCache:
        """Return an empty cache of this model's type and device; its capacity is the whole context unless given."""
        weight = self.embedding.weight
        room = self.config.max_positions if capacity is None else capacity
        return DenseCache(self.config, batch_size, room, weight.dtype, weight.device)

    def _check(self, tokens_BT: Tensor, positions: Tensor | None, past: int) -> Tensor:
        if tokens_BT.ndim != 2 or tokens_BT.shape[1] < 1 or tokens_BT.dtype not in (torch.int64, torch.int32):
            raise InputError(
                f"tokens have type {tokens_BT.dtype} and shape {tuple(tokens_BT.shape)}; "
                "give int64 or int32 of shape [batch, tokens] with at least one token"
            )
        batch, num_tokens = tokens_BT.shape
        if positions is None:
            if past + num_tokens > self.config.max_positions:
                raise InputError(
                    f"{past + num_tokens} tokens do not fit the context of {self.config.max_positions} "
                    "(max_positions); give fewer"
                )
            return torch.arange(past, past + num_tokens, device=tokens_BT.device)
        if positions.shape not in ((num_tokens,), (batch, num_tokens)):
            raise InputError(
                f"positions have shape {tuple(positions.shape)}; give [{num_tokens}] or [{batch}, {num_tokens}]"
            )
        return positions
