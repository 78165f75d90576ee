"""The small layers under every model: a linear map and an embedding that draw nothing, and RMSNorm.

PyTorch's own layers draw their first weights from the global generator when they are built. These start at zero
instead; `forethought.nn.initialise` gives every tensor its values from its own generator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Linear(nn.Linear):
    """A linear map that starts at zero and leaves the global generator alone."""

    def reset_parameters(self) -> None:
        """Set the weight and the bias to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """A look-up table that starts at zero and leaves the global generator alone."""

    def reset_parameters(self) -> None:
        """Set the table to zero."""
        nn.init.zeros_(self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis (arXiv 1910.07467), with or without a learned scale."""

    def __init__(self, size: int, eps: float, *, learned_scale: bool = True) -> None:
        super().__init__()
        self.size, self.eps = size, eps
        self.weight = nn.Parameter(torch.ones(size)) if learned_scale else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x[..., size]; the statistics are taken in fp32 for narrower types."""
        # Under autocast the activations are narrower than the fp32 weight; otherwise this cast does nothing.
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return functional.rms_norm(x, (self.size,), weight, self.eps)

    def extra_repr(self) -> str:
        """Describe the layer in the module tree."""
        return f"{self.size}, eps={self.eps}, learned_scale={self.weight is not None}"
