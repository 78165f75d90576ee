"""A number for a sequence: the value of a plan, or a policy's action, with the backbones of the denoisers.

Legend: B batch, F steps, X features a step, K context tokens, C features of one, D width, V outputs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from forethought.core.config import config
from forethought.core.errors import InputError
from forethought.nn.block import Block
from forethought.nn.config import BlockConfig
from forethought.nn.denoisers.config import Backbone, Count, Size
from forethought.nn.denoisers.folded import FoldedStack
from forethought.nn.denoisers.mlp import ResidualLayer
from forethought.nn.denoisers.packed import Packed, pack_linears
from forethought.nn.initialise import initialise
from forethought.nn.layers import Embedding, Linear, RMSNorm


@config
class RegressorConfig:
    """The shape of a regressor: sequences [B, horizon, size], and context tokens where num_context is not 0."""

    size: Size
    """Features of a step."""
    horizon: Size
    """Steps of the sequence."""
    outputs: Size = 1
    """Numbers to return."""
    context_size: Count = 0
    """Features of a context token."""
    num_context: Count = 0
    """Context tokens."""
    backbone: Backbone = "mlp"
    """mlp (over the flattened input) or transformer."""
    hidden_size: Size = 256
    """Width of the residual stream."""
    num_layers: Size = 3
    """Residual blocks."""
    num_heads: Size = 8
    """Heads of the transformer."""
    intermediate_size: int | None = Field(default=None, ge=1)
    """Middle of the feed-forward layers."""


class SequenceRegressor(nn.Module):
    """Maps a sequence and its context to `outputs` numbers."""

    def __init__(self, shape: RegressorConfig, *, seed: int) -> None:
        super().__init__()
        self.shape = shape
        self.body = _MLPBody(shape) if shape.backbone == "mlp" else _TransformerBody(shape)
        self.norm = RMSNorm(shape.hidden_size, 1e-6)
        self.output = Linear(shape.hidden_size, shape.outputs)
        initialise(self, seed)

    def frozen(self, dtype: torch.dtype = torch.float32) -> SequenceRegressor:
        """Return a copy for inference, with its weights as they are now; the residual MLP in another type if asked.

        It takes and returns fp32 and equals the network up to rounding (of that type); it stays on its device.
        """
        made = copy.deepcopy(self).requires_grad_(False).eval()
        if isinstance(made.body, _MLPBody):
            made.body = _FoldedBody(made.body, made.norm, made.output, dtype)
            made.norm, made.output = nn.Identity(), nn.Identity()
        else:
            pack_linears(made)
        return made

    def forward(self, x_BFX: Tensor, context_BKC: Tensor | None = None) -> Tensor:
        """Return [B, outputs].

        Raises:
            InputError: the sequence or the context is not of the shape that the regressor was built for.
        """
        shape = self.shape
        given = None if context_BKC is None else tuple(context_BKC.shape[1:])
        wanted = (shape.num_context, shape.context_size) if shape.num_context else None
        if tuple(x_BFX.shape[1:]) != (shape.horizon, shape.size) or given != wanted:
            raise InputError(
                f"sequence {tuple(x_BFX.shape)} and context {given} do not fit; this regressor takes "
                f"(rows, {shape.horizon}, {shape.size}) and {'no context' if wanted is None else wanted}"
            )
        return self.output(self.norm(self.body(x_BFX, context_BKC)))


class _MLPBody(nn.Module):
    def __init__(self, shape: RegressorConfig) -> None:
        super().__init__()
        width = shape.hidden_size
        self.chunk_input = Linear(shape.horizon * shape.size, width)
        self.context_input = Linear(shape.num_context * shape.context_size, width) if shape.num_context else None
        middle = shape.intermediate_size or 2 * width
        self.layers = nn.ModuleList(ResidualLayer(width, middle) for _ in range(shape.num_layers))

    def forward(self, x_BFX: Tensor, context_BKC: Tensor | None) -> Tensor:
        hidden_BD = self.chunk_input(x_BFX.flatten(1))
        if self.context_input is not None and context_BKC is not None:
            hidden_BD = hidden_BD + self.context_input(context_BKC.flatten(1))
        for layer in self.layers:
            hidden_BD = layer(hidden_BD)
        return hidden_BD


class _FoldedBody(nn.Module):
    """The residual MLP with its last norm and map, folded for inference."""

    def __init__(self, body: _MLPBody, norm: RMSNorm, output: Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.context_input = dtype, body.context_input
        self.chunk, self.bias = Packed(body.chunk_input.weight.to(dtype)), body.chunk_input.bias
        layers: list[Any] = list(body.layers)
        self.stack = FoldedStack(layers, norm, output, dtype)
        self.up_biases = [layer.up.bias.detach().to(dtype) for layer in layers]

    def forward(self, x_BFX: Tensor, context_BKC: Tensor | None) -> Tensor:
        row = self.bias[None]
        if self.context_input is not None and context_BKC is not None:
            row = row + self.context_input(context_BKC.flatten(1))
        hidden_BD = self.chunk(x_BFX.flatten(1).to(self.dtype), None) + row
        return self.stack(hidden_BD, tuple(self.up_biases)).float()


class _TransformerBody(nn.Module):
    def __init__(self, shape: RegressorConfig) -> None:
        super().__init__()
        block = BlockConfig(
            hidden_size=shape.hidden_size, num_heads=shape.num_heads, intermediate_size=shape.intermediate_size
        )
        self.chunk_input = Linear(shape.size, shape.hidden_size)
        self.context_input = Linear(shape.context_size, shape.hidden_size) if shape.num_context else None
        self.positions = Embedding(1 + shape.num_context + shape.horizon, shape.hidden_size)
        self.blocks = nn.ModuleList(Block(block, layer) for layer in range(shape.num_layers))

    def forward(self, x_BFX: Tensor, context_BKC: Tensor | None) -> Tensor:
        rows, positions_TD = len(x_BFX), self.positions.weight
        parts = [positions_TD[:1].expand(rows, 1, -1)]
        if self.context_input is not None and context_BKC is not None:
            tokens = self.context_input(context_BKC).expand(rows, -1, -1)
            parts.append(tokens + positions_TD[1 : 1 + tokens.shape[1]])
        parts.append(self.chunk_input(x_BFX) + positions_TD[-x_BFX.shape[1] :])
        hidden_BTD = torch.cat(parts, dim=1)
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD)
        # The first token has no input of its own: it reads the others.
        return hidden_BTD[:, 0]
