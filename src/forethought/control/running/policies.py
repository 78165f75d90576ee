"""What can drive robots: random actions, a function, a cloned network, a stable-baselines3 agent, or a planning Agent.

Legend: B robots, O numbers an observation, A numbers an action.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.control.body import Body
from forethought.control.models import ClonedPolicy
from forethought.control.situation import History
from forethought.core.errors import ArtefactError, ConfigError
from forethought.core.extras import require
from forethought.core.rng import generator

Floats = NDArray[np.float32]


class Policy(Protocol):
    """Drives `num_robots` robots: `reset(robot)` at the start of an episode, then `act(observations) -> actions`."""

    @property
    def num_robots(self) -> int:
        """Robots that are driven at once."""
        ...

    def reset(self, robot: int | None = None) -> None:
        """Begin a new episode of one robot, or of all."""
        ...

    def act(self, observation: ArrayLike) -> Floats:
        """Return the next actions, (B, A), for observations (B, O)."""
        ...

    def executed(self, actions_BA: ArrayLike) -> None:
        """Say what the robots really did, where it differs from what `act` returned."""
        ...


class ScriptedPolicy:
    """A function of one observation, (O,) -> (A,), for any number of robots.

    Raises:
        ConfigError: the function cannot be called.
    """

    def __init__(self, function: Callable[[Floats], ArrayLike], *, num_robots: int = 1) -> None:
        if not callable(function):
            raise ConfigError(f"a scripted policy is a function of the observation; given {type(function).__name__}")
        self.function, self.num_robots = function, num_robots

    def reset(self, robot: int | None = None) -> None:
        """Do nothing: a function has no memory."""

    def act(self, observation: ArrayLike) -> Floats:
        """Return the function's actions, (B, A)."""
        seen = np.asarray(observation, np.float32)
        return np.stack([np.asarray(self.function(row), np.float32).reshape(-1) for row in seen])

    def executed(self, actions_BA: ArrayLike) -> None:
        """Do nothing: a function has no memory."""


class RandomPolicy(ScriptedPolicy):
    """Uniform actions between two bounds, each held for `hold` steps."""

    def __init__(self, low: ArrayLike, high: ArrayLike, *, seed: int = 0, hold: int = 1, num_robots: int = 1) -> None:
        low_A, high_A = np.asarray(low, np.float32), np.asarray(high, np.float32)
        if low_A.shape != high_A.shape or not (np.isfinite(low_A) & np.isfinite(high_A)).all() or hold < 1:
            raise ConfigError("random actions need finite bounds of one shape, and to be held for at least one step")
        super().__init__(lambda _: low_A, num_robots=num_robots)
        self._low_A, self._high_A, self._rng, self._hold = low_A, high_A, generator(seed, "control.random"), hold
        self._calls, self._present = 0, np.zeros((num_robots, len(low_A)), np.float32)

    def act(self, observation: ArrayLike) -> Floats:
        """Return random actions, (B, A)."""
        if self._calls % self._hold == 0:
            self._present = self._rng.uniform(self._low_A, self._high_A, self._present.shape).astype(np.float32)
        self._calls += 1
        return self._present


class ReactivePolicy:
    """A cloned or distilled network at work: one small forward pass an action, with the history it was trained with."""

    def __init__(self, model: ClonedPolicy, *, num_robots: int = 1) -> None:
        self.model, self.num_robots = model, num_robots
        self.reset()

    def reset(self, robot: int | None = None) -> None:
        """Begin a new episode of one robot, or of all."""
        if robot is None:
            body = self.model.body
            self._history = History(self.num_robots, body.obs_dim, body.act_dim, self.model.settings.history)
            self._last = np.zeros((self.num_robots, body.act_dim), np.float32)
            self._begun = [False] * self.num_robots
        else:
            self._begun[robot] = False

    def act(self, observation: ArrayLike) -> Floats:
        """Return the network's actions, (B, A)."""
        seen = np.asarray(observation, np.float32).reshape(self.num_robots, -1)
        for robot, row in enumerate(seen):
            if self._begun[robot]:
                self._history.step(robot, self._last[robot], row)
            else:
                self._history.begin(robot, row)
                self._begun[robot] = True
        self._last = self.model(self._history.situation(range(self.num_robots))).cpu().numpy().astype(np.float32)
        return self._last

    def executed(self, actions_BA: ArrayLike) -> None:
        """Remember what was really done."""
        self._last = np.asarray(actions_BA, np.float32).reshape(self._last.shape)


def open_sb3(path: Path | str, *, algorithm: str = "SAC", num_robots: int = 1, sampled: bool = True) -> ScriptedPolicy:
    """Open an agent that stable-baselines3 saved; the file is unpickled by that library, so open only what you trust.

    Raises:
        MissingExtraError: stable-baselines3 is not installed.
        ArtefactError: there is no such file.
        ConfigError: the library has no such algorithm.
    """
    library: Any = require("stable_baselines3", extra="behaviour", purpose="opening a stable-baselines3 agent")
    if not Path(path).is_file():
        raise ArtefactError(f"{path} does not exist; give the .zip that stable-baselines3 saved")
    kind = getattr(library, algorithm.upper(), None)
    if kind is None:
        raise ConfigError(f"stable-baselines3 has no algorithm {algorithm!r}; give for example SAC, PPO, TD3 or A2C")
    agent = kind.load(str(path), device="cpu")
    return ScriptedPolicy(lambda row: agent.predict(row, deterministic=not sampled)[0], num_robots=num_robots)


def check_policy(body: Body, action_space: Any) -> None:
    """Compare an environment's actions with a body's.

    Raises:
        ConfigError: the shapes differ.
    """
    shape = tuple(getattr(action_space, "shape", None) or ())
    if shape != (body.act_dim,):
        raise ConfigError(f"the environment's actions have the shape {shape}, the policy gives ({body.act_dim},)")
