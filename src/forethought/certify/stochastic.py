"""A network with Gaussian weights: the posterior that PAC-Bayes training learns, and its divergence from the prior.

Legend: D parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from forethought.certify.decoder.base import draw, slots_of
from forethought.core.errors import InputError


class GaussianNetwork(nn.Module):
    """Q = N(mean, diag(deviation^2)) against P = N(first weights, prior_deviation^2), tensor by tensor.

    The prior's centre is drawn from the seed and its deviation is a constant, so P knows nothing of the data. The
    weights of the module given are not used; its code is. Buffers are refused by the caller's lint.

    Raises:
        InputError: prior_deviation is not positive.
    """

    def __init__(self, module: nn.Module, *, prior_deviation: float = 0.03, seed: int = 0) -> None:
        super().__init__()
        if not prior_deviation > 0.0:
            raise InputError(f"prior_deviation {prior_deviation} must be above 0")
        # Kept out of the registry of submodules: its own weights are never used and must not be trained.
        self._code = [module.eval()]
        self.slots = slots_of(module)
        self.prior_deviation = prior_deviation
        centre = torch.cat([torch.from_numpy(draw(slot, seed)).float() for slot in self.slots])
        self.register_buffer("centre", centre)
        self.mean = nn.Parameter(centre.clone())
        self.raw_deviation = nn.Parameter(torch.full_like(centre, math.log(math.expm1(prior_deviation))))

    @property
    def deviation(self) -> Tensor:
        """The deviations [D] of Q, softplus of the raw parameter."""
        return functional.softplus(self.raw_deviation)

    def divergence(self) -> Tensor:
        """Return KL(Q || P) in nats, in float64."""
        deviation, centre = self.deviation.double(), self.get_buffer("centre").double()
        ratio = (deviation / self.prior_deviation).square()
        moved = ((self.mean.double() - centre) / self.prior_deviation).square()
        return 0.5 * (moved + ratio - 1.0 - ratio.log()).sum()

    def forward(self, inputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the outputs of one draw of the weights, or of the means where no generator is given."""
        flat = self.mean
        if generator is not None:
            noise = torch.randn(flat.shape, generator=generator)
            flat = flat + self.deviation * noise
        pieces = torch.split(flat, [slot.size for slot in self.slots])
        weights = {slot.name: piece.view(slot.shape) for slot, piece in zip(self.slots, pieces, strict=True)}
        return functional_call(self._code[0], weights, (inputs,))
