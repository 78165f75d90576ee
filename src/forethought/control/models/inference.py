"""Networks as planning runs them: folded once, and again whenever a weight has changed since."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Inference:
    """Holds the frozen forms of a model's networks; shallow copies of the model share them, deep ones begin anew."""

    def __init__(self) -> None:
        # The network itself too, so that no other one can come to have its id.
        self._known: dict[int, tuple[nn.Module, list[torch.Tensor]]] = {}
        self._frozen: dict[tuple[int, torch.dtype], tuple[tuple[int, ...], Any]] = {}

    def of(self, network: nn.Module, dtype: torch.dtype) -> Any:
        """Return the network itself where freezing gains nothing (an accelerator in fp32), else its frozen form."""
        name = id(network)
        if name not in self._known:
            self._known[name] = network, [*network.parameters()]
        tensors = self._known[name][1]
        if dtype == torch.float32 and tensors[0].device.type != "cpu":
            return network
        # Every write to a tensor in place counts its version up: training, loading, averaging.
        state = tuple(part for tensor in tensors for part in (tensor._version, tensor.data_ptr()))
        known = self._frozen.get((name, dtype))
        if known is None or known[0] != state:
            with torch.no_grad():
                known = state, network.frozen(dtype)  # pyright: ignore
            self._frozen[name, dtype] = known
        return known[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> Inference:
        """Return an empty one: the copy's weights are its own."""
        return Inference()
