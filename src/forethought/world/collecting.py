"""Episodes of the built-in environments from scripted behaviour, with states, frames and actions.

Behaviours are those of `forethought.envs.behaviour`, by name. `data` is what an environment's data are made with: noisy
way-points in two rooms, pushers of two kinds and the weak policy in Push-T, drifting and reaching in the reacher.

Legend: B environments in lock-step, T steps, S numbers of a state, A numbers of an action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.core.rng import generator
from forethought.data import Episodes
from forethought.envs import IDENTIFIERS, System, make_system
from forethought.envs.behaviour import make_policy
from forethought.world.planning.arena import SystemArena

Array = NDArray[Any]
LOCKSTEP = 64


@config
class CollectConfig:
    """What to collect."""

    environment: str = "two-rooms"
    """two-rooms, push-t or reacher."""
    behaviour: str = "data"
    """data, noisy, expert, random or still; push-t also knows weak."""
    episodes: int = Field(default=200, ge=1)
    steps: int = Field(default=100, ge=2)
    """Steps of each episode; there is no early end, so that late frames are as common as early ones."""
    image_size: int = Field(default=64, ge=16)
    seed: int = Field(default=0, ge=0)


def collect_episodes(settings: CollectConfig, *, progress: Callable[[int], None] | None = None) -> Episodes:
    """Collect episodes with observations (the state), actions and frames; deterministic in the seed.

    Raises:
        ConfigError: the environment is unknown, or it has no such behaviour.
    """
    system = make_system(settings.environment)
    policy = make_policy(settings.environment, settings.behaviour)
    arena = SystemArena(system, settings.image_size)
    shape = (settings.episodes, settings.steps)
    states = np.empty((*shape, system.state_dim))
    actions = np.empty((*shape, system.action_dim), np.float32)
    frames = np.empty((*shape, settings.image_size, settings.image_size, 3), np.uint8)
    finals = np.empty((settings.episodes, system.state_dim))
    last = np.empty((settings.episodes, *frames.shape[2:]), np.uint8)
    for group, begin in enumerate(range(0, settings.episodes, LOCKSTEP)):
        rows = slice(begin, min(begin + LOCKSTEP, settings.episodes))
        draws = generator(settings.seed, f"world.collect.{settings.environment}", group)
        count = rows.stop - rows.start
        factors = system.complete(None, count)
        starts, goals = system.draw_states(draws, factors), system.draw_states(draws, factors)
        arena.reset(starts)
        policy.begin(system, starts, goals, factors, draws)
        for step in range(settings.steps):
            states[rows, step], frames[rows, step] = arena.states(), arena.frames()
            actions[rows, step] = policy.act(arena.states())
            arena.step(actions[rows, step])
        finals[rows], last[rows] = arena.states(), arena.frames()
        if progress is not None:
            progress(rows.stop)
    lengths = np.full(settings.episodes, settings.steps)
    return Episodes(
        {
            "observations": states.reshape(-1, system.state_dim).astype(np.float32),
            "actions": actions.reshape(-1, system.action_dim),
            "frames": frames.reshape(-1, *frames.shape[2:]),
        },
        starts=np.arange(settings.episodes) * settings.steps,
        lengths=lengths,
        terminated=np.zeros(settings.episodes, bool),
        truncated=np.ones(settings.episodes, bool),
        finals={"observations": finals.astype(np.float32), "frames": last},
        env_id=IDENTIFIERS[settings.environment],
        metadata={"behaviour": settings.behaviour, "seed": settings.seed},
        source=f"{settings.environment} ({settings.behaviour})",
    )


def environment_of(episodes: Episodes) -> System:
    """Return the built-in system that episodes were collected in.

    Raises:
        ConfigError: they come from elsewhere.
    """
    for name, identifier in IDENTIFIERS.items():
        if episodes.env_id == identifier:
            return make_system(name)
    raise ConfigError(
        f"{episodes.source} comes from {episodes.env_id!r}, which is no built-in environment "
        f"({', '.join(IDENTIFIERS.values())}); evaluate through the Python interface with an Arena of your own"
    )
