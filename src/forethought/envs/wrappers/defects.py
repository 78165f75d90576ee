"""Things that go wrong, as wrappers around any Gymnasium environment: in the body, in the eyes, in the world.

A defect of the body changes the actions on their way in and leaves `action_space` as it was: data must hold the actions
that were commanded, so that a model can learn the defect. `info["executed_action"]` holds what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from forethought.core.errors import ConfigError, InputError


class _BodyDefect(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Changes actions; needs a bounded or unbounded box of one axis as action space."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        if not isinstance(env.action_space, spaces.Box) or len(env.action_space.shape) != 1:
            raise ConfigError(
                f"{type(self).__name__} needs actions that are one row of numbers; this environment has "
                f"{env.action_space}"
            )
        self.num_actuators = env.action_space.shape[0]
        self._low, self._high, self._dtype = env.action_space.low, env.action_space.high, env.action_space.dtype

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Apply the defective action, clipped to the action space."""
        executed = np.clip(self.executed(np.asarray(action, dtype=np.float64)), self._low, self._high)
        observation, reward, terminated, truncated, info = self.env.step(executed.astype(self._dtype))
        return observation, reward, terminated, truncated, {**info, "executed_action": executed}

    def executed(self, action_A: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the body does when an action is commanded."""
        return action_A


class ActuatorLimit(_BodyDefect):
    """One actuator reaches only from `low` to `high`.

    `ActuatorLimit(walker, index=2)` limits the right foot of Gymnasium's Walker2d to half (index 5 is the left one).

    Raises:
        ConfigError: there is no such actuator, or low lies above high.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], index: int, low: float = -0.5, high: float = 0.5) -> None:
        super().__init__(env)
        if not 0 <= index < self.num_actuators or not low <= high:
            raise ConfigError(
                f"actuator {index} limited to {low} .. {high}: there are actuators 0 to {self.num_actuators - 1}, "
                "and low must not lie above high"
            )
        self.index, self.limits = index, (low, high)

    def executed(self, action_A: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the action with the one actuator limited."""
        limited = action_A.copy()
        limited[self.index] = np.clip(limited[self.index], *self.limits)
        return limited


class ActuatorDisabled(ActuatorLimit):
    """One actuator does nothing."""

    def __init__(self, env: gymnasium.Env[Any, Any], index: int) -> None:
        super().__init__(env, index, 0.0, 0.0)


class ActionGain(_BodyDefect):
    """Actions are multiplied by a gain, one for all actuators or one for each; -1 flips the sign.

    Raises:
        ConfigError: the gains are not finite or there are too many or too few.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], gain: float | Sequence[float]) -> None:
        super().__init__(env)
        gains = np.asarray(gain, dtype=np.float64)
        if gains.shape not in ((), (self.num_actuators,)) or not np.isfinite(gains).all():
            raise ConfigError(f"gain is {gain}; give one finite number or {self.num_actuators}, one for each actuator")
        self.gains = np.broadcast_to(gains, (self.num_actuators,))

    def executed(self, action_A: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the action times the gain."""
        return action_A * self.gains


class ActionDelay(_BodyDefect):
    """Actions arrive `num_steps` later; until the first one does, `rest` (zeros) is done.

    Raises:
        ConfigError: the delay is negative, or `rest` has another size.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], num_steps: int, rest: Sequence[float] | None = None) -> None:
        super().__init__(env)
        self.rest = np.zeros(self.num_actuators) if rest is None else np.asarray(rest, dtype=np.float64)
        if num_steps < 0 or self.rest.shape != (self.num_actuators,):
            raise ConfigError(
                f"num_steps is {num_steps} and rest has the shape {self.rest.shape}; a delay is at least 0 and rest "
                f"has {self.num_actuators} numbers"
            )
        self.num_steps = num_steps
        self._waiting: list[NDArray[np.float64]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode with no action on its way."""
        self._waiting = [self.rest.copy() for _ in range(self.num_steps)]
        return super().reset(seed=seed, options=options)

    def executed(self, action_A: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the action commanded `num_steps` ago."""
        self._waiting.append(action_A.copy())
        return self._waiting.pop(0)


class RecolouredObservation(gymnasium.ObservationWrapper[Any, Any, Any]):
    """The picture is seen in other colours from step `at` on: every pixel is mapped by a 3 x 3 matrix plus an offset.

    With no matrix given the channels are rotated (red is seen as green). Observations are pictures, or dictionaries
    with a picture under "pixels". To recolour one thing and not all, change a factor of a built-in environment.

    Raises:
        ConfigError: the observations hold no picture, or the matrix is not 3 x 3.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], at: int = 0, matrix: ArrayLike | None = None, offset: ArrayLike = 0.0
    ) -> None:
        super().__init__(env)
        space = env.observation_space
        picture = space["pixels"] if isinstance(space, spaces.Dict) and "pixels" in space.spaces else space
        is_picture = isinstance(picture, spaces.Box) and picture.dtype == np.uint8 and picture.shape[-1:] == (3,)
        if not is_picture:
            raise ConfigError(f"recolouring needs uint8 pictures (..., 3); this environment observes {space}")
        self.at = at
        self.matrix = np.roll(np.eye(3), 1, axis=0) if matrix is None else np.asarray(matrix, dtype=np.float64)
        self.offset = np.broadcast_to(np.asarray(offset, dtype=np.float64), (3,))
        if self.matrix.shape != (3, 3):
            raise ConfigError(f"matrix has the shape {self.matrix.shape}; it must be 3 x 3")
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode at step 0."""
        self._step = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Count the step and see it in other colours once its time has come."""
        self._step += 1
        return super().step(action)

    def observation(self, observation: Any) -> Any:
        """Return the observation as it is seen."""
        if self._step < self.at:
            return observation
        if isinstance(observation, Mapping):
            return {**observation, "pixels": self._map(observation["pixels"])}
        return self._map(observation)

    def _map(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.clip(np.rint(pixels @ self.matrix.T + self.offset), 0, 255).astype(np.uint8)


class _WorldEvent(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Something that happens to the state at one step; needs `state`, `set_state` and `observe` of the environment."""

    def __init__(self, env: gymnasium.Env[Any, Any], at: int) -> None:
        super().__init__(env)
        if at < 1:
            raise ConfigError(f"at is {at}; the first step is 1")
        missing = [name for name in ("set_state", "observe") if not env.has_wrapper_attr(name)]
        if missing:
            raise ConfigError(
                f"{type(self).__name__} needs an environment with {', '.join(missing)}; built-in ones have it, others "
                "get it from forethought.envs.wrappers.PixelsAndState"
            )
        self.at, self._step = at, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode at step 0."""
        self._step = 0
        return super().reset(seed=seed, options=options)

    def state_now(self) -> NDArray[np.float64]:
        """Return the state of the environment, (S,)."""
        return np.array(self.env.get_wrapper_attr("state"), dtype=np.float64)

    def put(self, state: NDArray[np.float64]) -> Any:
        """Put the environment into a state and return what is seen then."""
        self.env.get_wrapper_attr("set_state")(state)
        return self.env.get_wrapper_attr("observe")()


class Teleport(_WorldEvent):
    """At step `at` the state becomes `change(state)` (a number array stands for a constant offset).

    Only what is seen afterwards changes: reward and termination of that step are those before the jump.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], at: int, change: Callable[[NDArray[np.float64]], ArrayLike] | ArrayLike
    ) -> None:
        super().__init__(env, at)
        self._change = change

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take the step, and the jump when it is time."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._step += 1
        if self._step == self.at:
            before = self.state_now()
            after = np.asarray(self._change(before) if callable(self._change) else before + np.asarray(self._change))
            if after.shape != before.shape:
                raise InputError(f"a teleport made a state of shape {after.shape}; it must keep {before.shape}")
            observation, info = self.put(after), {**info, "state": after, "event": "teleport"}
        return observation, reward, terminated, truncated, info


class Freeze(_WorldEvent):
    """From step `at` on, for `num_steps` steps, the chosen numbers of the state stay as they were (None for all)."""

    def __init__(
        self, env: gymnasium.Env[Any, Any], at: int, num_steps: int = 1, which: Sequence[int] | None = None
    ) -> None:
        super().__init__(env, at)
        if num_steps < 1:
            raise ConfigError(f"num_steps is {num_steps}; a freeze lasts at least one step")
        self.num_steps, self.which = num_steps, which

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take the step, and undo it where the world is frozen."""
        before = self.state_now()
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._step += 1
        if self.at <= self._step < self.at + self.num_steps:
            after = self.state_now()
            which = slice(None) if self.which is None else list(self.which)
            after[which] = before[which]
            observation, info = self.put(after), {**info, "state": after, "event": "freeze"}
        return observation, reward, terminated, truncated, info
