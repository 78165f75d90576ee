"""A denoiser of the one transformer block: clean conditions as tokens, the noise level through adaLN.

Tokens stand in this order: context, aligned (where it has tokens of its own), chunk; each place has a learned position.

Legend: B batch (1 for a condition that all rows share), F horizon, P = F / patch, X features a step, K context tokens,
T all tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from forethought.nn.block import Block
from forethought.nn.config import BlockConfig
from forethought.nn.denoisers.config import DenoiserConfig
from forethought.nn.denoisers.embed import TimeEmbedding
from forethought.nn.denoisers.interface import Denoiser, Prepared
from forethought.nn.layers import Linear, RMSNorm


class TransformerDenoiser(Denoiser):
    """The transformer; `patch` steps of the chunk make one token."""

    def __init__(self, shape: DenoiserConfig) -> None:
        super().__init__(shape)
        width, patch = shape.hidden_size, shape.patch
        self.num_patches = shape.horizon // patch
        block = BlockConfig(
            hidden_size=width,
            num_heads=shape.num_heads,
            intermediate_size=shape.intermediate_size,
            qk_norm=shape.qk_norm,
            condition_size=width,
        )
        self.time = TimeEmbedding(width)
        self.chunk_input = Linear(patch * shape.size, width)
        self.context_input = Linear(shape.context_size, width) if shape.num_context else None
        self.aligned_input = Linear(patch * shape.aligned_size, width) if shape.aligned_size else None
        self.aligned_apart = shape.aligned_tokens and self.aligned_input is not None
        num_tokens = shape.num_context + self.num_patches * (2 if self.aligned_apart else 1)
        self.positions_TD = nn.Parameter(torch.zeros(num_tokens, width))
        self.blocks = nn.ModuleList(Block(block, layer) for layer in range(shape.num_layers))
        self.norm = RMSNorm(width, 1e-6, learned_scale=False)
        self.last_scale = Linear(width, 2 * width)
        self.output = Linear(width, patch * shape.size)

    def prepare(self, context: Tensor | None, aligned: Tensor | None) -> Prepared:
        """Return (tokens before the chunk's, what is added to the chunk's), each [B or 1, ., D]."""
        count = len(self.positions_TD) - self.num_patches
        before: list[Tensor] = []
        added = self.positions_TD[count:][None]
        if self.context_input is not None and context is not None:
            before.append(self.context_input(context))
        if self.aligned_input is not None and aligned is not None:
            tokens = self.aligned_input(aligned.reshape(len(aligned), self.num_patches, -1))
            if self.aligned_apart:
                before.append(tokens)
            else:
                added = added + tokens
        if not before:
            return (added,)
        rows = max(len(part) for part in before)
        tokens = torch.cat([part.expand(rows, -1, -1) for part in before], dim=1)
        return added, tokens + self.positions_TD[:count]

    def level(self, times: Tensor) -> Prepared:
        """Return (condition of the blocks, last scale, last shift), [B or 1, D] and [B or 1, 1, D]."""
        condition = self.time(times)
        scale, shift = self.last_scale(functional.silu(condition))[:, None].chunk(2, dim=-1)
        return condition, scale, shift

    def run(self, x_BFX: Tensor, level: Prepared, prepared: Prepared) -> Tensor:
        """Return the raw output for chunks, from what `level` and `prepare` returned."""
        condition, scale, shift = level
        rows = len(x_BFX)
        hidden = self.chunk_input(x_BFX.reshape(rows, self.num_patches, -1)) + prepared[0]
        if len(prepared) == 2:
            hidden = torch.cat((prepared[1].expand(rows, -1, -1), hidden), dim=1)
        for block in self.blocks:
            hidden = block(hidden, condition=condition)
        # The conditions' tokens are done: only the chunk's are read.
        hidden = hidden[:, -self.num_patches :]
        return self.output(self.norm(hidden) * (1 + scale) + shift).reshape(x_BFX.shape)
