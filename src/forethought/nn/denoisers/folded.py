"""The residual MLP for inference: everything that no chunk changes is multiplied out once.

    norms      their learned scales go into the weights behind them
    times      each level's shift and the layer's bias become one bias, made once for each time
    conditions the first layer's bias and what the conditions make of it become one row

Weights may be bfloat16; the residual stream stays fp32, which halves its error and costs nothing.

Legend: B batch (1 for a condition that all rows share), F horizon, X features a step, D width, M middle.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from forethought.nn.denoisers.interface import Denoiser, Prepared
from forethought.nn.denoisers.packed import Packed
from forethought.nn.layers import RMSNorm

if TYPE_CHECKING:
    from forethought.nn.denoisers.mlp import MLPDenoiser, ResidualLayer


class FoldedStack(nn.Module):
    """Residual layers and the last norm and map: hidden [B, D] and a bias a layer in, raw output [B, outputs] out."""

    down_bias_LD: Tensor
    output_bias: Tensor

    def __init__(self, layers: list[ResidualLayer], norm: RMSNorm, output: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.ups = [Packed(_scaled(layer.up.weight, layer.norm).to(dtype)) for layer in layers]
        self.downs = [Packed(layer.down.weight.to(dtype)) for layer in layers]
        self.last = Packed(_scaled(output.weight, norm).to(dtype))
        self.eps = norm.eps
        self.register_buffer("down_bias_LD", torch.stack([layer.down.bias for layer in layers]).detach().to(dtype))
        self.register_buffer("output_bias", output.bias.detach().to(dtype))

    def forward(self, hidden_BD: Tensor, biases: Prepared) -> Tensor:
        """Return the raw output; a bias is [M], or [B, M] where rows differ."""
        for index, (up, down) in enumerate(zip(self.ups, self.downs, strict=True)):
            bias = biases[index]
            normal_BD = self._normal(hidden_BD)
            if bias.ndim == 1:
                middle_BM = up(normal_BD, bias, silu=True)
            else:
                middle_BM = functional.silu(up(normal_BD, None) + bias)
            hidden_BD = down.onto(hidden_BD, middle_BM, self.down_bias_LD[index])
        return self.last(self._normal(hidden_BD), self.output_bias)

    def _normal(self, hidden_BD: Tensor) -> Tensor:
        return functional.rms_norm(hidden_BD, hidden_BD.shape[-1:], None, self.eps).to(self.dtype)


class FoldedMLP(Denoiser):
    """`MLPDenoiser` as it was when it was folded, for inference; times are digested once each."""

    def __init__(self, made_of: MLPDenoiser, dtype: torch.dtype) -> None:
        super().__init__(made_of.shape)
        self._source, self._dtype = copy.deepcopy(made_of).requires_grad_(False).eval().float(), dtype
        source = self._source
        self._up_bias_LM = [layer.up.bias.detach() for layer in source.layers]  # pyright: ignore
        self._chunk = Packed(source.chunk_input.weight.to(dtype))
        aligned = source.aligned_input
        self._aligned = None if aligned is None else Packed(aligned.weight.to(dtype))
        self._stack = FoldedStack(list(source.layers), source.norm, source.output, dtype)  # pyright: ignore
        self._levels = {}

    @property
    def input_dtype(self) -> torch.dtype:
        """Conditions and chunks come in fp32; what is narrow is made narrow inside."""
        return torch.float32

    def frozen(self, dtype: torch.dtype = torch.float32) -> Denoiser:
        """Return the same network in another type."""
        return FoldedMLP(self._source, dtype)

    def prepare(self, context: Tensor | None, aligned: Tensor | None) -> Prepared:
        """Return the part of the first layer that the conditions make, its bias in it, [1 or B, D]."""
        source = self._source
        row = source.chunk_input.bias[None]
        if source.context_input is not None and context is not None:
            row = row + source.context_input(context.flatten(1))
        if source.aligned_input is not None and self._aligned is not None and aligned is not None:
            row = row + source.aligned_input.bias
            row = row + self._aligned(aligned.flatten(1).to(self._dtype), None)
        return (row,)

    def level(self, times: Tensor) -> Prepared:
        """Return the bias of each layer, [M] for one time and [B, M] for many."""
        shifts = self._source.level(times)
        biases = [bias + shift for bias, shift in zip(self._up_bias_LM, shifts, strict=True)]
        return tuple((bias[0] if len(bias) == 1 else bias).to(self._dtype).contiguous() for bias in biases)

    def run(self, x_BFX: Tensor, level: Prepared, prepared: Prepared) -> Tensor:
        """Return the raw output for chunks, from what `level` and `prepare` returned."""
        chunk = x_BFX.flatten(1).to(self._dtype)
        (row,) = prepared
        if len(row) == 1 and self._dtype == row.dtype:
            hidden_BD = self._chunk(chunk, row[0])
        else:
            hidden_BD = self._chunk(chunk, None) + row
        return self._stack(hidden_BD, level).view_as(x_BFX).to(x_BFX.dtype)


def _scaled(weight_OI: Tensor, norm: RMSNorm) -> Tensor:
    """Return a weight with the norm's scale before it multiplied in."""
    return (weight_OI if norm.weight is None else weight_OI * norm.weight).detach()
