"""What a budget of time affords: estimates from measured steps, a plan beforehand and a guard while it runs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from forethought.core.errors import ConfigError
from forethought.pretrain.members.config import MembersConfig, steps_of

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(text: str) -> float:
    """Return the seconds of a budget such as 90s, 30m, 2h or 1d.

    Raises:
        ConfigError: the text is no such budget.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"budget {text!r} is no time; give a number and a unit such as 90s, 30m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2]]


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

    `member_seconds` estimates a member's step under the settings; `workers` members train at a time.
    """

    seconds: float | None
    member_seconds: Callable[[MembersConfig], float]
    windows: Callable[[MembersConfig], int]
    workers: int = 1
    refused: list[Item] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def estimate(self, settings: MembersConfig, members: int) -> float:
        """Return the seconds that so many members are thought to take."""
        steps = steps_of(settings, self.windows(settings))
        return self.member_seconds(settings) * steps * settings.fit.loop.accumulate * members / self.workers

    def __call__(self, settings: MembersConfig, members: int) -> bool:
        """Say whether so many members may still be trained."""
        cost = self.estimate(settings, members)
        if self.seconds is None or time.monotonic() - self.started + cost <= self.seconds:
            return True
        shape = settings.fit.model
        size = f"{shape.hidden_size}x{shape.num_layers}"
        tokens = f"{settings.train_tokens:,} tokens"
        self.refused.append(Item(f"{members} members, {size}, {tokens}, {settings.epochs:g} epochs", cost))
        return False
