"""The network as a function of the numbers that a message will hold.

Legend: d numbers, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from forethought.certify.codes import Segment
from forethought.certify.compress.quantiser import Quantiser
from forethought.certify.decoder.base import draw
from forethought.certify.decoder.rebuild import assembly_of
from forethought.certify.decoder.recipe import Recipe


class CompressibleNetwork(nn.Module):
    """A recipe's network with its d numbers as parameters, plain first and quantised after `quantise`.

    Weights come from the same assembly that the decoder uses, in float32; the module given for an architecture of the
    user's own lends its code and none of its weights.
    """

    def __init__(
        self, recipe: Recipe, *, module: nn.Module | None = None, base: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.assembly = assembly_of(recipe, module, base=base, dtype=torch.float32)
        self.numbers = nn.Parameter(_first_numbers(self))
        self.quantiser: Quantiser | None = None

    def quantise(self) -> Quantiser:
        """Fit codebooks to the numbers as they are; from now on the network is the one that a message would mean."""
        self.quantiser = Quantiser(self.recipe.codebook, self.assembly.plan.segments, self.numbers)
        return self.quantiser

    def forward(self, *inputs: Tensor) -> tuple[Any, Tensor]:
        """Return (outputs, bits); the bits are 0 before quantisation."""
        numbers, bits = self.numbers, self.numbers.new_zeros(())
        if self.quantiser is not None:
            numbers, bits = self.quantiser(self.numbers)
        return functional_call(self.assembly.module, self.assembly.weights(numbers), inputs), bits

    def segments(self, *, thrift: float = 0.0) -> list[Segment]:
        """Return what a message would hold; quantises the plain numbers where that was not done."""
        quantiser = self.quantise() if self.quantiser is None else self.quantiser
        return quantiser.coded(self.numbers, thrift=thrift)


def _first_numbers(network: CompressibleNetwork) -> Tensor:
    """Zeros, so that training starts from the base weights; where the base is zeros, a seeded draw of all weights."""
    assembly, recipe = network.assembly, network.recipe
    if recipe.base.kind == "zeros" and recipe.subspace.kind == "identity" and recipe.lora is None:
        parts = [torch.from_numpy(draw(slot, recipe.base.seed) - slot.centre) for slot in assembly.plan.moved]
        return torch.cat(parts).float()
    return torch.zeros(assembly.plan.dimension)
