"""The embedding of a noise level: sines and cosines of the time, then two layers.

Legend: B batch (or 1 for a time that all rows share), C condition width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from forethought.nn.layers import Linear

_FREQUENCIES = 64
_SCALE = 1000.0


class TimeEmbedding(nn.Module):
    """Maps times [B] in [0, 1] to conditions [B, C]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.input = Linear(2 * _FREQUENCIES, size)
        self.output = Linear(size, size)

    def forward(self, times_B: Tensor) -> Tensor:
        """Return the embedding of each time, in the type of the weights."""
        # From one turn over the whole range to _SCALE of them: few steps need the slow ones, many the fast ones. Angles
        # in fp32, made here: a module that is cast to bfloat16 would round the frequencies, and with them every angle.
        rates = torch.exp(torch.linspace(0.0, math.log(_SCALE), _FREQUENCIES, device=times_B.device))
        angles = times_B.float()[:, None] * rates
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1).to(self.input.weight.dtype)
        return self.output(functional.silu(self.input(waves)))
