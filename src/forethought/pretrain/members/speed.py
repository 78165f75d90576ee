"""How fast members train together and apart: measured in turns on this machine, so that the faster way is taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from forethought.core import rng
from forethought.nn import LanguageModel, TransformerConfig
from forethought.pretrain.batching import MembersBatch
from forethought.pretrain.config import DistillationConfig
from forethought.pretrain.members.config import Member, MembersConfig
from forethought.pretrain.members.loss import members_loss
from forethought.pretrain.members.optim import StackedOptimisers
from forethought.pretrain.members.stacked import StackedModel

WORTH = 1.03  # a batch must be this much faster a member than members apart before it is taken


@dataclass(frozen=True)
class Speeds:
    """Seconds a member's step takes in groups of each size, and the size to take."""

    seconds: dict[int, float]
    best: int

    @property
    def gain(self) -> float:
        """How many times faster a member is in the chosen group than apart."""
        return self.seconds[1] / self.seconds[self.best]


class Steps:
    """Training steps of a group of members on drawn tokens: the real model, loss and optimisers, and nothing else."""

    def __init__(self, settings: MembersConfig, shape: TransformerConfig, group: int) -> None:
        fit, members = settings.fit, tuple(Member(seed=k) for k in range(group))
        models = [LanguageModel(shape, seed=k) for k in range(group)]
        self._device = torch.device(fit.device)
        frontier = settings.frontier
        self.model = StackedModel(models, dropout=frontier.dropout, ahead=frontier.ahead_share > 0)
        self.model.place(self._device).train()
        self._loss = members_loss(
            members, frontier, labels=None, distillation=DistillationConfig(), device=self._device
        )
        own = [replace(fit.optimiser, tau=None)] * group
        self._optimisers = StackedOptimisers(self.model, own, steps_per_epoch=1.0, clip_norm=fit.loop.clip_norm)
        shape_KBT = (group, fit.batch_size, fit.context)
        tokens = rng.generator(0, "pretrain.speed").integers(0, shape.vocab_size, shape_KBT)
        self._batch = MembersBatch(0, tokens, np.roll(tokens, -1, axis=-1))

    def step(self) -> list[Tensor]:
        """Take one step of every member and return each one's loss before it."""
        value, figures = self._loss(self.model, self._batch)
        value.backward()
        self._optimisers.step()
        self._optimisers.zero_grad()
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return [figures[f"loss_{k}"] for k in range(self.model.num_members)]


def measure_speeds(
    settings: MembersConfig, shape: TransformerConfig, groups: Sequence[int], *, rounds: int = 5
) -> Speeds:
    """Time a step in groups of the given sizes, in turns, and choose: apart, unless a batch is clearly faster.

    The median over the rounds counts; a machine that is busy elsewhere slows all sizes of a round alike.
    """
    sizes = sorted({1, *groups})
    steps = {size: Steps(settings, shape, size) for size in sizes}
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(rounds + 1):
        for size in sizes:
            started = time.perf_counter()
            steps[size].step()
            if number:  # the first step of each warms up
                seconds[size].append((time.perf_counter() - started) / size)
    medians = {size: statistics.median(values) for size, values in seconds.items()}
    fastest = min(sizes, key=lambda size: medians[size])
    return Speeds(medians, fastest if medians[1] >= WORTH * medians[fastest] else 1)
