"""A budget of time for a plan: fewer denoising steps and candidates when it would come too late; late plans counted.

The levels are a ladder from the wanted effort down to the least. The time of a level is the upper quartile of its last
plans; a level that was never run is judged from the present one by the ratio of work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from forethought.core.errors import ConfigError

_MEMORY = 16
# What a level has to leave free before the planner climbs to it, so that it does not swing between two.
_CLIMB = 0.8


@dataclass(frozen=True)
class Level:
    """How much a plan may do: candidates, and denoising steps of proposal and dynamics (None: as the model is set)."""

    num_samples: int
    proposal_steps: int | None = None
    dynamics_steps: int | None = None

    @property
    def work(self) -> float:
        """Network evaluations, in rows."""
        return self.num_samples * float((self.proposal_steps or 1) + (self.dynamics_steps or 1))


def ladder(full: Level, *, least_samples: int = 4) -> tuple[Level, ...]:
    """Return the levels from `full` down: steps are halved first, which costs quality least, then candidates."""
    levels = [full]
    while True:
        last = levels[-1]
        steps = (last.proposal_steps or 1, last.dynamics_steps or 1)
        if max(steps) > 2 or (last.num_samples <= least_samples and max(steps) > 1):
            halved = [
                None if given is None else max(1, given // 2) for given in (last.proposal_steps, last.dynamics_steps)
            ]
            levels.append(replace(last, proposal_steps=halved[0], dynamics_steps=halved[1]))
        elif last.num_samples > least_samples:
            levels.append(replace(last, num_samples=max(least_samples, last.num_samples // 2)))
        else:
            return tuple(levels)


class Budget:
    """Chooses the level of each plan so that plans come within `seconds`; None never degrades. It counts what was late.

    Raises:
        ConfigError: seconds is not above 0, or there are no levels.
    """

    def __init__(self, levels: tuple[Level, ...], seconds: float | None = None) -> None:
        if not levels or (seconds is not None and not seconds > 0):
            raise ConfigError(f"a budget of {seconds} seconds over {len(levels)} levels: give more than 0 of each")
        self.levels, self.seconds = levels, seconds
        self.num_plans = self.num_misses = 0
        self._present = 0
        self._times: list[deque[float]] = [deque(maxlen=_MEMORY) for _ in levels]
        self._last_run = [0] * len(levels)

    def choose(self, seconds: float | None = None) -> Level:
        """Return the level to plan at, for a budget of this plan's own or the usual one."""
        limit = self.seconds if seconds is None else seconds
        if limit is None:
            self._present = 0
            return self.levels[0]
        while self._present + 1 < len(self.levels) and self._expected(self._present) > limit:
            self._present += 1
        while self._present > 0 and self._expected(self._present - 1) <= _CLIMB * limit:
            self._present -= 1
        return self.levels[self._present]

    def record(self, seconds: float, limit: float | None = None) -> bool:
        """Take in how long the plan took and return whether it came too late."""
        self._times[self._present].append(seconds)
        self._last_run[self._present] = self.num_plans
        # What a level took long ago, on a machine that was busy then, must not keep the planner from it for ever.
        for times, last in zip(self._times, self._last_run, strict=True):
            if self.num_plans - last > _MEMORY:
                times.clear()
        bound = self.seconds if limit is None else limit
        late = bound is not None and seconds > bound
        self.num_plans += 1
        self.num_misses += int(late)
        return late

    def _expected(self, index: int) -> float:
        """Return the expected time of a level; 0 where nothing is known yet."""
        own = self._times[index]
        known = min((i for i, times in enumerate(self._times) if times), key=lambda i: abs(i - index), default=None)
        if own:
            ordered = sorted(own)
            return ordered[(3 * (len(ordered) - 1) + 3) // 4]
        if known is None:
            return 0.0
        return self._expected(known) * self.levels[index].work / self.levels[known].work


Clock = Callable[[], float]
