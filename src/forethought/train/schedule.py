"""Learning-rate schedules as pure functions of the step; one schedule spans the whole run, over all its epochs."""

from __future__ import annotations

import math
from collections.abc import Callable

from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import unknown_name


@config
class ScheduleConfig:
    """How the learning rate moves: a linear warm-up, then the named shape down to a floor."""

    name: str = "cosine"
    """cosine, trapezoid or constant."""
    warmup: float = Field(default=0.01, ge=0.0, lt=1.0)
    """Share of all steps in which the rate rises."""
    cooldown: float = Field(default=0.2, ge=0.0, le=1.0)
    """Share of the steps after the warm-up in which a trapezoid falls."""
    floor: float = Field(default=0.0, ge=0.0, le=1.0)
    """What is left of the peak at the end."""

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise unknown_name("schedule", self.name, SCHEDULES)


def multiplier(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Return the factor on the peak learning rate for a step counted from 0 in a run of `steps` steps."""
    warmup = math.ceil(schedule.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    shape = SCHEDULES[schedule.name](min(progress, 1.0), schedule.cooldown)
    return schedule.floor + (1.0 - schedule.floor) * shape


def _cosine(progress: float, _cooldown: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _trapezoid(progress: float, cooldown: float) -> float:
    return 1.0 if progress <= 1.0 - cooldown or cooldown == 0.0 else (1.0 - progress) / cooldown


def _constant(_progress: float, _cooldown: float) -> float:
    return 1.0


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "trapezoid": _trapezoid,
}
