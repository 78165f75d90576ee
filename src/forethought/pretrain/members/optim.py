"""The optimisers of stacked members: one set a member, over views of the stacked parameters.

Each member has its own learning rate, decay and clipping, through the very optimisers of a single run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.pretrain.members.config import FrontierConfig
from forethought.pretrain.members.stacked import StackedModel
from forethought.train import OptimiserConfig, Optimisers, build_optimisers


@dataclass(frozen=True)
class Cycles:
    """Cosine restarts over a run, with the decay in anti-phase (Q Labs, arXiv 2606.03938)."""

    steps: int
    count: int
    decay_low: float
    decay_high: float

    def factors(self, step: int) -> tuple[float, float]:
        """Return the factors on the rate and on the decay at a step counted from 0."""
        length = self.steps / self.count
        progress = (step % length) / length
        rate = 0.5 * (1.0 + math.cos(math.pi * progress))
        return rate, self.decay_high + (self.decay_low - self.decay_high) * rate

    def ends(self) -> list[int]:
        """Return the numbers of steps after which a cycle is over."""
        return [round(self.steps * (cycle + 1) / self.count) for cycle in range(self.count)]


def cycles_of(frontier: FrontierConfig, steps: int) -> Cycles | None:
    """Return the cycles that a run was asked for, if any."""
    if not frontier.cycles:
        return None
    return Cycles(steps, frontier.cycles, frontier.decay_low, frontier.decay_high)


class StackedOptimisers(Optimisers):
    """The optimisers of K members, stepping together; gradients are clipped member by member to `clip_norm`."""

    def __init__(
        self,
        model: StackedModel,
        settings: Sequence[OptimiserConfig],
        *,
        steps_per_epoch: float,
        clip_norm: float | None,
        cycles: Cycles | None = None,
    ) -> None:
        self._model, self._clip_norm, self._cycles, self._done = model, clip_norm, cycles, 0
        names: dict[int, str] = {}
        members: list[torch.optim.Optimizer] = []
        for k, (member, own) in enumerate(zip(model.members, settings, strict=True)):
            built = build_optimisers(member, own, steps_per_epoch=steps_per_epoch)
            members += built.members
            names |= {key: f"{k}.{name}" for key, name in built.names.items()}
        super().__init__(members, names)
        self._decays = [[group["weight_decay"] for group in each.param_groups] for each in members]
        pairs = [[(n.replace(".", "/"), p) for n, p in member.named_parameters()] for member in model.members]
        self._views = pairs

    def parameters(self) -> Iterable[Tensor]:
        """Yield the stacked parameters, which carry the gradients."""
        yield from self._model.parameters()

    def set_rate(self, factor: float) -> None:
        """Set every rate to a factor of its peak: the loop's, or the one of the cycle, with its decay."""
        if self._cycles is not None:
            factor, decay = self._cycles.factors(self._done)
            for member, peaks in zip(self.members, self._decays, strict=True):
                for group, peak in zip(member.param_groups, peaks, strict=True):
                    group["weight_decay"] = peak * decay
        super().set_rate(factor)

    def step(self) -> None:
        """Clip and apply each member's gradients."""
        for k, views in enumerate(self._views):
            for name, parameter in views:
                gradient = self._model.stacked[name].grad
                parameter.grad = None if gradient is None else gradient[k]
            if self._clip_norm is not None:
                torch.nn.utils.clip_grad_norm_([p for _, p in views], self._clip_norm, foreach=True)
        super().step()
        self._done += 1

    def zero_grad(self) -> None:
        """Drop the gradients."""
        super().zero_grad()
        self._model.zero_grad(set_to_none=True)

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` returned, on each parameter's device; AdamW's own count tells how far the run is.

        Raises:
            ConfigError: the saved state is of other parameters or of another optimiser.
        """
        device = next(self._model.parameters()).device
        super().load_state({key: tensor.to(device) for key, tensor in tensors.items()})
        self._done = max((int(value) for key, value in tensors.items() if key.endswith("/step")), default=0)
