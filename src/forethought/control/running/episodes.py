"""The loop of robots and environments: as many episodes as wanted, several at a time, every one from its own seed.

Legend: B robots, L steps of an episode, O numbers an observation, A numbers an action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.control.running.policies import Policy
from forethought.core.errors import ConfigError, DataError
from forethought.core.rng import derive_seed

Floats = NDArray[np.float32]
Perturb = Callable[[int, int, Floats], Floats]
FRAME_EVERY = 2
"""Steps from one kept frame of a filmed episode to the next."""
_LARGEST_SIDE = 320


@dataclass
class Finished:
    """One whole episode: what was seen, commanded and rewarded, the last observation, and how it ended."""

    number: int
    observations: list[Floats] = field(default_factory=list)
    actions: list[Floats] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    final: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    terminated: bool = False
    truncated: bool = False
    frames: list[NDArray[np.uint8]] = field(default_factory=list)

    @property
    def total(self) -> float:
        """The undiscounted return."""
        return float(np.sum(self.rewards))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the steps as arrays named as episode data names them."""
        return {
            "observations": np.stack(self.observations),
            "actions": np.stack(self.actions),
            "rewards": np.asarray(self.rewards, np.float32),
        }


def run_episodes(
    make: Callable[[], Any],
    policy: Policy,
    num_episodes: int,
    *,
    seed: int = 0,
    first: int = 0,
    perturb: Perturb | None = None,
    on_step: Callable[[int, int, Floats, Floats, Floats], None] | None = None,
    film: int = 0,
) -> Iterator[Finished]:
    """Yield episodes `first` to `num_episodes` - 1 as they end; episode i resets its environment with its own seed.

    `make` builds a Gymnasium environment; one is made for each robot of the policy. `perturb(episode, step, action)`
    changes what is done (exploration); actions are logged as commanded, before the environment clips or spoils them.
    `on_step(robot, step, observation, action, next)` sees every step. The first `film` episodes keep rendered frames.

    Raises:
        ConfigError: no episodes are wanted, or the environment's observations are no vectors.
        DataError: the environment returned numbers that are not finite.
    """
    if num_episodes < 1 or first < 0:
        raise ConfigError(f"{num_episodes} episodes from number {first}: give at least 1, from 0")
    with ExitStack() as stack:
        num_robots = max(1, min(policy.num_robots, num_episodes - first))
        # The policy keeps its number of robots; those beyond the episodes stand still.
        envs = [stack.enter_context(_closing(make())) for _ in range(num_robots)]
        waiting = iter(range(first, num_episodes))
        slots: list[Finished | None] = [None] * num_robots
        now = np.zeros((policy.num_robots, *_shape(envs[0])), np.float32)
        for robot in range(num_robots):
            slots[robot] = _begin(envs, policy, robot, next(waiting, None), now, seed, film)
        while any(slot is not None for slot in slots):
            actions_BA = np.array(policy.act(now), np.float32)
            if perturb is not None:
                _perturbed(perturb, policy, slots, actions_BA)
            for robot, slot in enumerate(slots):
                if slot is None:
                    continue
                _step(envs[robot], slot, actions_BA[robot], now, robot)
                if on_step is not None:
                    on_step(robot, len(slot.actions) - 1, slot.observations[-1], slot.actions[-1], now[robot])
                if slot.terminated or slot.truncated:
                    slot.final = now[robot].copy()
                    yield slot
                    slots[robot] = _begin(envs, policy, robot, next(waiting, None), now, seed, film)


def _perturbed(perturb: Perturb, policy: Policy, slots: list[Finished | None], actions_BA: Floats) -> None:
    for robot, slot in enumerate(slots):
        if slot is not None:
            actions_BA[robot] = perturb(slot.number, len(slot.actions), actions_BA[robot])
    policy.executed(actions_BA)


def _begin(
    envs: list[Any], policy: Policy, robot: int, number: int | None, now: Floats, seed: int, film: int
) -> Finished | None:
    if number is None:
        return None
    policy.reset(robot)
    observation, _ = envs[robot].reset(seed=derive_seed(seed, "control.episode", number) % (1 << 31))
    now[robot] = _checked(observation, "the first observation", number, 0)
    episode = Finished(number)
    if number < film:
        episode.frames.append(_frame(envs[robot]))
    return episode


def _step(env: Any, episode: Finished, action_A: Floats, now: Floats, robot: int) -> None:
    episode.observations.append(now[robot].copy())
    episode.actions.append(action_A.copy())
    observation, reward, terminated, truncated, _ = env.step(action_A)
    length = len(episode.actions)
    now[robot] = _checked(observation, "an observation", episode.number, length)
    episode.rewards.append(float(_checked(reward, "a reward", episode.number, length)))
    episode.terminated, episode.truncated = bool(terminated), bool(truncated) and not bool(terminated)
    if episode.frames and length % FRAME_EVERY == 0:
        episode.frames.append(_frame(env))


def _frame(env: Any) -> NDArray[np.uint8]:
    """Return a rendered frame, thinned out to at most about 320 pixels a side: a long episode has to fit in memory."""
    frame = np.asarray(env.render(), np.uint8)
    step = -(-max(frame.shape[:2]) // _LARGEST_SIDE)
    return np.ascontiguousarray(frame[::step, ::step])


def _shape(env: Any) -> tuple[int]:
    shape = tuple(getattr(env.observation_space, "shape", None) or ())
    if len(shape) != 1:
        raise ConfigError(
            f"observations have the shape {shape}; this room controls vectors. Flatten them with a wrapper"
        )
    return (int(shape[0]),)


def _checked(value: Any, what: str, episode: int, step: int) -> Floats:
    array = np.asarray(value, np.float32)
    if not np.isfinite(array).all():
        raise DataError(
            f"the environment gave {what} that is not finite in episode {episode} at step {step}; its simulation broke "
            "down: use smaller actions or another seed"
        )
    return array


class _closing:
    def __init__(self, env: Any) -> None:
        self._env = env

    def __enter__(self) -> Any:
        return self._env

    def __exit__(self, *_: object) -> None:
        self._env.close()
