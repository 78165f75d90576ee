"""A denoiser over the flattened chunk: a residual MLP, the fastest by far on a CPU.

Legend: B batch (1 for a condition that all rows share), F horizon, X features a step, D width, K context tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from forethought.nn.denoisers.config import DenoiserConfig
from forethought.nn.denoisers.embed import TimeEmbedding
from forethought.nn.denoisers.folded import FoldedMLP
from forethought.nn.denoisers.interface import Denoiser, Prepared
from forethought.nn.layers import Linear, RMSNorm


class ResidualLayer(nn.Module):
    """x + down(silu(up(norm(x)) + shift)); the shift carries the noise level."""

    def __init__(self, hidden_size: int, middle: int) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size, 1e-6)
        self.up = Linear(hidden_size, middle)
        self.down = Linear(middle, hidden_size)

    def forward(self, x_BD: Tensor, shift: Tensor | None = None) -> Tensor:
        """Return the layer's output; shift is [B or 1, middle]."""
        middle = self.up(self.norm(x_BD))
        return x_BD + self.down(functional.silu(middle if shift is None else middle + shift))


class MLPDenoiser(Denoiser):
    """The residual MLP; its first layer is split by input, so that clean conditions are projected once a call."""

    def __init__(self, shape: DenoiserConfig) -> None:
        super().__init__(shape)
        width = shape.hidden_size
        middle = shape.intermediate_size or 2 * width
        self.time = TimeEmbedding(width)
        self.shifts = Linear(width, middle * shape.num_layers)
        self.chunk_input = Linear(shape.horizon * shape.size, width)
        self.context_input = Linear(shape.num_context * shape.context_size, width) if shape.num_context else None
        self.aligned_input = Linear(shape.horizon * shape.aligned_size, width) if shape.aligned_size else None
        self.layers = nn.ModuleList(ResidualLayer(width, middle) for _ in range(shape.num_layers))
        self.norm = RMSNorm(width, 1e-6)
        self.output = Linear(width, shape.horizon * shape.size)

    def frozen(self, dtype: torch.dtype = torch.float32) -> Denoiser:
        """Return the folded form (see `Denoiser.frozen`)."""
        return FoldedMLP(self, dtype)

    def prepare(self, context: Tensor | None, aligned: Tensor | None) -> Prepared:
        """Return the part of the first layer that the conditions make, [B or 1, D]."""
        part: Tensor | None = None
        if self.context_input is not None and context is not None:
            part = self.context_input(context.flatten(1))
        if self.aligned_input is not None and aligned is not None:
            more = self.aligned_input(aligned.flatten(1))
            part = more if part is None else part + more
        return () if part is None else (part,)

    def level(self, times: Tensor) -> Prepared:
        """Return the shift of each layer, [B or 1, middle]."""
        return self.shifts(functional.silu(self.time(times))).chunk(len(self.layers), dim=-1)

    def run(self, x_BFX: Tensor, level: Prepared, prepared: Prepared) -> Tensor:
        """Return the raw output for chunks, from what `level` and `prepare` returned."""
        hidden_BD = self.chunk_input(x_BFX.flatten(1))
        for part in prepared:
            hidden_BD = hidden_BD + part
        for layer, shift in zip(self.layers, level, strict=True):
            hidden_BD = layer(hidden_BD, shift)
        return self.output(self.norm(hidden_BD)).view_as(x_BFX)
