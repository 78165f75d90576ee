"""What a budget of time affords: estimates from measured steps, a plan beforehand and a guard while it runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from forethought.pretrain.affordable import (
    BYTES_A_SECOND,
    FORWARD_SHARE,
    MOST_RESERVED,
    RESERVED_SHARE,
    SAVE_SECONDS,
    SAVED_BYTES,
)
from forethought.pretrain.members.config import MembersConfig, steps_of

_RECENT = 5


@dataclass(frozen=True)
class Item:
    """One piece of work, what it is and what it is thought to take."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What fits into a budget, in order, and what was left out of it."""

    taken: tuple[Item, ...]
    left_out: tuple[Item, ...]


def plan(items: Sequence[Item], seconds: float | None) -> Plan:
    """Take items in order while they fit together into the budget; one that does not fit does not stop smaller ones."""
    taken: list[Item] = []
    left_out: list[Item] = []
    spent = 0.0
    for item in items:
        fits = seconds is None or spent + item.seconds <= seconds
        spent += item.seconds if fits else 0.0
        (taken if fits else left_out).append(item)
    return Plan(tuple(taken), tuple(left_out))


@dataclass
class Guard:
    """Says no once the next batch of members would not end within the budget, and remembers what it refused.

    The budget is of the whole time since `started`: reading and tokenising, the measured steps, evaluations, saves, and
    a reserve for the laws at the end. `member_seconds` estimates a member's step under the settings, `parameters` its
    size; `workers` members train at a time. What members took is held against what they were thought to take, and
    later estimates are corrected by the ratio.
    """

    seconds: float | None
    member_seconds: Callable[[MembersConfig], float]
    windows: Callable[[MembersConfig], int]
    parameters: Callable[[MembersConfig], int] = lambda _settings: 0
    workers: int = 1
    refused: list[Item] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _granted: tuple[float, float] | None = None
    _ratios: list[float] = field(default_factory=list)

    @property
    def remaining(self) -> float | None:
        """Seconds left for training: the budget less all that has passed and the reserve for the end."""
        if self.seconds is None:
            return None
        reserve = min(MOST_RESERVED, RESERVED_SHARE * self.seconds)  # laws take 5 s on one core for 36 rungs
        return self.seconds - reserve - (time.monotonic() - self.started)

    @property
    def correction(self) -> float:
        """What estimates are multiplied by: the median ratio of time taken to time estimated, so far."""
        return statistics.median(self._ratios[-_RECENT:]) if self._ratios else 1.0

    def estimate(self, settings: MembersConfig, members: int) -> float:
        """Return the seconds that so many members are thought to take, from first step to export."""
        return self._whole(settings, members) * self.correction

    def __call__(self, settings: MembersConfig, members: int) -> bool:
        """Say whether so many members may still be trained; what the last ones took is learnt first."""
        self._learn()
        whole, remaining = self._whole(settings, members), self.remaining
        cost = whole * self.correction
        if remaining is None or cost <= remaining:
            self._granted = time.monotonic(), whole
            return True
        shape = settings.fit.model
        size = f"{shape.hidden_size}x{shape.num_layers}"
        tokens = f"{settings.train_tokens:,} tokens"
        self.refused.append(Item(f"{members} members, {size}, {tokens}, {settings.epochs:g} epochs", cost))
        return False

    def _whole(self, settings: MembersConfig, members: int) -> float:
        loop, each = settings.fit.loop, self.member_seconds(settings)
        steps = steps_of(settings, self.windows(settings))
        training = each * steps * loop.accumulate
        evaluations = evaluated_tokens(settings, steps) * each / (settings.fit.batch_size * settings.fit.context)
        saves = saves_of(settings, steps) * (SAVE_SECONDS + self.parameters(settings) * SAVED_BYTES / BYTES_A_SECOND)
        return (training + FORWARD_SHARE * evaluations + saves) * members / self.workers

    def _learn(self) -> None:
        if self._granted is not None:
            began, thought = self._granted
            self._ratios.append((time.monotonic() - began) / max(thought, 1e-9))
            self._granted = None


def evaluated_tokens(settings: MembersConfig, steps: int) -> int:
    """Return the held-out tokens that a member is asked for: evaluations on the way, and three slices at the end."""
    every, each = settings.fit.loop.evaluate_every, settings.fit.evaluation_tokens
    return (3 + 1 + (steps // every if every else 0)) * each


def saves_of(settings: MembersConfig, steps: int) -> int:
    """Return how often a run writes its state or its models: checkpoints, the last one, snapshots, and the export."""
    every, frontier = settings.fit.loop.checkpoint_every, settings.frontier
    return 2 + (steps // every if every else 0) + max(0, frontier.cycles - 1) + frontier.last_k
