"""Episodes of the built-in environments from scripted behaviour, with states, frames and actions.

Two behaviours: way-points (two rooms: straight to the door, then to a goal in the other room, redrawn on arrival, with
noise as the published data have it) and wandering (any environment: actions that drift at random and stay correlated).

Legend: B environments in lock-step, T steps, S numbers of a state, A numbers of an action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.core.rng import generator
from forethought.data import Episodes
from forethought.envs import IDENTIFIERS, System, TwoRooms, make_system
from forethought.world.planning.arena import SystemArena

Array = NDArray[Any]
LOCKSTEP = 64


@config
class CollectConfig:
    """What to collect."""

    environment: str = "two-rooms"
    """two-rooms, push-t or reacher."""
    behaviour: Literal["waypoints", "wander"] = "waypoints"
    """waypoints (two rooms only), or wander."""
    episodes: int = Field(default=200, ge=1)
    steps: int = Field(default=100, ge=2)
    """Steps of each episode; there is no early end, so that late frames are as common as early ones."""
    image_size: int = Field(default=64, ge=16)
    noise: float = Field(default=2.0, ge=0)
    """Standard deviation of the noise on a way-point's unit direction; published: 2."""
    repeat: float = Field(default=0.05, ge=0, le=1)
    """Chance that an action is that of the step before; published: 5 %."""
    seed: int = Field(default=0, ge=0)


def collect_episodes(settings: CollectConfig, *, progress: Callable[[int], None] | None = None) -> Episodes:
    """Collect episodes with observations (the state), actions and frames; deterministic in the seed.

    Raises:
        ConfigError: the environment or the behaviour is unknown, or they do not go together.
    """
    system = make_system(settings.environment)
    if settings.behaviour == "waypoints" and not isinstance(system, TwoRooms):
        raise ConfigError(f"way-points are for two-rooms; for {settings.environment} choose behaviour wander")
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
        arena.reset(system.draw_states(draws, system.complete(None, count)))
        act = _behaviour(settings, system, count, draws)
        for step in range(settings.steps):
            states[rows, step], frames[rows, step] = arena.states(), arena.frames()
            actions[rows, step] = act(arena.states())
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
        metadata={"behaviour": settings.behaviour, "noise": settings.noise, "seed": settings.seed},
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


def _behaviour(
    settings: CollectConfig, system: System, count: int, draws: np.random.Generator
) -> Callable[[Array], Array]:
    if settings.behaviour == "waypoints":
        return _Waypoints(system, count, settings.noise, settings.repeat, draws)
    return _Wander(system, count, draws)


class _Waypoints:
    """To the door's centre while the goal is in the other room, else to the goal; a new goal on arrival."""

    def __init__(self, system: System, count: int, noise: float, repeat: float, draws: np.random.Generator) -> None:
        self._system, self._noise, self._repeat, self._draws = system, noise, repeat, draws
        self._factors = system.complete(None, count)
        self._goals = system.draw_states(draws, self._factors)
        self._last = np.zeros((count, system.action_dim))

    def __call__(self, states_BS: Array) -> Array:
        arrived = self._system.success(states_BS, self._goals, self._factors)
        fresh = self._system.draw_states(self._draws, self._factors)
        self._goals = np.where(arrived[:, None], fresh, self._goals)
        middle = np.asarray(self._system.state_high)[0] / 2
        door = np.stack([np.full(len(states_BS), middle), self._factors["door_position"][:, 0]], axis=1)
        side, wanted = states_BS[:, 0] > middle, self._goals[:, 0] > middle
        # At the door the centre is the way-point no longer, or the dot would stay there.
        through = (side != wanted) & (np.abs(states_BS - door).max(axis=1) > 12.0)
        target = np.where(through[:, None], door, self._goals)
        direction = target - states_BS
        unit = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
        action = np.clip(unit + self._noise * self._draws.normal(size=unit.shape), -1, 1)
        again = self._draws.random(len(states_BS)) < self._repeat
        self._last = np.where(again[:, None], self._last, action)
        return self._last


class _Wander:
    """Correlated random actions over the whole range."""

    def __init__(self, system: System, count: int, draws: np.random.Generator) -> None:
        self._low, self._high = np.asarray(system.action_low), np.asarray(system.action_high)
        self._draws = draws
        self._will = draws.uniform(-1, 1, (count, len(self._low)))

    def __call__(self, states_BS: Array) -> Array:
        self._will = np.clip(0.85 * self._will + 0.5 * self._draws.normal(size=self._will.shape), -1, 1)
        return self._low + (self._will + 1) / 2 * (self._high - self._low)
