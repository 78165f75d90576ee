"""How often a policy reaches goals of held-out episodes, beside doing nothing and acting at random.

A pair is a start state and a goal state of one episode, `offset` steps apart. Pairs whose start already counts as the
goal are left out and counted. All environments run in lock-step; success is judged after every step (any-time, as
published) and at the end of the budget (final).

Legend: B pairs, S numbers of a state, H W rows and columns, A numbers of an action.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import DataError
from forethought.core.rng import derive_seed, generator
from forethought.data import Episodes
from forethought.stats import wilson
from forethought.world.planning.policies import Policy
from forethought.world.planning.scripted import Informed

Array = NDArray[Any]


class Arena(Protocol):
    """B environments in lock-step whose whole state can be set; success is a relation of two states."""

    def reset(self, states_BS: Array) -> None:
        """Put environment b into state b."""
        ...

    def frames(self) -> Array:
        """Return the present frames, uint8 (B, H, W, 3)."""
        ...

    def states(self) -> Array:
        """Return the present states, (B, S)."""
        ...

    def step(self, actions_BA: Array) -> None:
        """Apply one action to each environment; actions outside the bounds are clipped, as the environment does."""
        ...

    def reached(self, states_BS: Array, goals_BS: Array) -> NDArray[np.bool_]:
        """Say which states count as their goals."""
        ...


@config
class EvaluationConfig:
    """The protocol; `offset` and `budget` in steps. Published: 25 and 50 (v3), 100 and 150 for two rooms (v1, v2)."""

    offset: int = Field(default=25, ge=1)
    budget: int = Field(default=50, ge=1)
    num_pairs: int = Field(default=40, ge=1)
    """Pairs of each seed."""
    num_seeds: int = Field(default=3, ge=1)
    seed: int = Field(default=0, ge=0)
    drop_trivial: bool = True
    """Leave out pairs that are solved at the start; False is the published protocol."""


@dataclass(frozen=True)
class Pairs:
    """Starts and goals: states (B, S), goal frames, and how many draws were thrown away as solved already."""

    starts_BS: Array
    goals_BS: Array
    goal_frames_BHWC: Array
    num_trivial: int
    num_drawn: int


def states_of(episodes: Episodes) -> Array:
    """Return the whole states of episodes: the array `states` where there is one, else the observations."""
    return episodes.array("states" if "states" in episodes.arrays else "observations")


def choose_pairs(episodes: Episodes, arena: Arena, settings: EvaluationConfig, seed: int) -> Pairs:
    """Draw distinct pairs from episodes, leaving out those already solved.

    Raises:
        DataError: no episode is longer than the offset, or every pair is trivial.
    """
    frames, states = episodes.array("frames"), states_of(episodes)
    counts = np.maximum(episodes.lengths - settings.offset, 0)
    total = int(counts.sum())
    if not total:
        raise DataError(
            f"{episodes.source}: no episode has a goal {settings.offset} steps after a start (longest: "
            f"{int(episodes.lengths.max())} steps); lower the offset or collect longer episodes"
        )
    before = np.cumsum(counts) - counts
    order = generator(seed, "world.pairs").permutation(total)
    rows = order + np.repeat(episodes.starts - before, counts)[order]
    solved = arena.reached(states[rows], states[rows + settings.offset]) if settings.drop_trivial else rows < 0
    # Trivial draws are counted up to the last one taken, so that their share is an unbiased one.
    taken = np.flatnonzero(~solved)[: settings.num_pairs]
    if not len(taken):
        raise DataError(f"{episodes.source}: all {total} pairs {settings.offset} steps apart are solved at the start")
    drawn = int(taken[-1]) + 1
    starts = rows[taken]
    goals = starts + settings.offset
    return Pairs(states[starts], states[goals], frames[goals], int(solved[:drawn].sum()), drawn)


def evaluate_policies(
    policies: Mapping[str, Policy],
    episodes: Episodes,
    arena: Arena,
    settings: EvaluationConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run every policy on the same pairs, seed by seed, and return rates with Wilson intervals and times.

    Raises:
        DataError: as choose_pairs.
    """
    outcomes: dict[str, list[dict[str, Any]]] = {name: [] for name in policies}
    seeds = [derive_seed(settings.seed, "world.evaluate", index) for index in range(settings.num_seeds)]
    trivial = drawn = done = 0
    for seed in seeds:
        pairs = choose_pairs(episodes, arena, settings, seed)
        trivial, drawn = trivial + pairs.num_trivial, drawn + pairs.num_drawn
        for name, policy in policies.items():
            outcomes[name].append(run_policy(policy, pairs, arena, settings.budget, seed))
            done += 1
            if progress is not None:
                progress(done, len(seeds) * len(policies))
    return {
        "offset": settings.offset,
        "budget": settings.budget,
        "seeds": settings.num_seeds,
        "pairs": sum(len(each["any_time"]) for each in next(iter(outcomes.values()))),
        "trivial_pairs": trivial,
        "drawn_pairs": drawn,
        "drop_trivial": settings.drop_trivial,
        "policies": {name: _summary(runs) for name, runs in outcomes.items()},
    }


def run_policy(
    policy: Policy, pairs: Pairs, arena: Arena, budget: int, seed: int, *, keep_frames: bool = False
) -> dict[str, Any]:
    """Run one policy on all pairs in lock-step; return successes, steps to success, seconds and the states passed."""
    arena.reset(pairs.starts_BS)
    informed = policy if isinstance(policy, Informed) else None
    if informed is not None:
        informed.tell_goals(pairs.starts_BS, pairs.goals_BS)
    began = time.perf_counter()
    policy.begin(pairs.goal_frames_BHWC, seed)
    thinking = time.perf_counter() - began
    first = np.full(len(pairs.starts_BS), -1)
    reached = arena.reached(pairs.starts_BS, pairs.goals_BS)
    first[reached] = 0
    path, frames = [arena.states()], [arena.frames()] if keep_frames else []
    for step in range(1, budget + 1):
        seen = arena.frames()
        if informed is not None:
            informed.tell_states(path[-1])
        began = time.perf_counter()
        actions = policy.act(seen)
        thinking += time.perf_counter() - began
        arena.step(actions)
        path.append(arena.states())
        if keep_frames:
            frames.append(arena.frames())
        reached = arena.reached(path[-1], pairs.goals_BS)
        first[reached & (first < 0)] = step
    return {
        "any_time": (first >= 0).tolist(),
        "final": reached.tolist(),
        "steps": first.tolist(),
        "seconds_per_action": thinking / (budget * len(first)),
        "path_TBS": np.stack(path),
        "frames_TBHWC": np.stack(frames) if keep_frames else None,
    }


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    any_time = [bool(value) for run in runs for value in run["any_time"]]
    final = [bool(value) for run in runs for value in run["final"]]
    steps = [value for run in runs for value in run["steps"] if value >= 0]
    rate, last = wilson(sum(any_time), len(any_time)), wilson(sum(final), len(final))
    return {
        "success": rate.estimate,
        "success_interval": [rate.low, rate.high],
        "success_by_seed": [float(np.mean(run["any_time"])) for run in runs],
        "final_success": last.estimate,
        "final_success_interval": [last.low, last.high],
        "median_steps": float(np.median(steps)) if steps else None,
        "seconds_per_action": float(np.mean([run["seconds_per_action"] for run in runs])),
    }
