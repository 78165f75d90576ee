"""Any Gymnasium environment as one of pictures and states, for collecting data and for planning to goals.

States are exact where the environment says what its state is: MuJoCo (positions and velocities), or attributes `state`
and `set_state` of its own. Elsewhere the observation stands for the state, and `set_state` refuses.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from forethought.core.errors import ConfigError, InputError

Images = NDArray[np.uint8]


def resize(image_HWC: Images, size: int) -> Images:
    """Return a picture scaled to (size, size, C) by area: exact means of what each new pixel covers.

    Raises:
        InputError: the picture is not uint8 with height, width and channels.
    """
    if image_HWC.ndim != 3 or image_HWC.dtype != np.uint8:
        raise InputError(
            f"a picture of shape {image_HWC.shape} and type {image_HWC.dtype} was given; give uint8 (H, W, C)"
        )
    rows, columns = (_area_weights(length, size) for length in image_HWC.shape[:2])
    narrow = np.tensordot(rows, image_HWC.astype(np.float32), axes=(1, 0))
    small = np.tensordot(columns, narrow, axes=(1, 1)).transpose(1, 0, 2)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def _area_weights(length: int, size: int) -> NDArray[np.float32]:
    """Return how much of each old pixel lies in each new one, rows adding up to 1, (size, length)."""
    edges = np.arange(size + 1) * (length / size)
    old = np.arange(length)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    overlap = np.clip(overlap, 0.0, None)
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)


class PixelsAndState(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Observes {"pixels": (size, size, 3) uint8, "state": (S,) float64}, whatever the environment observes itself.

    The picture comes from its `render()`, so it must have been made with `render_mode="rgb_array"`.

    `reset(options={"state": s})` begins exactly at a state where the environment allows setting it.

    Raises:
        ConfigError: it renders no pictures, or its observations are no numbers and it has no state of its own.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], size: int = 64) -> None:
        super().__init__(env)
        if env.render_mode != "rgb_array":
            raise ConfigError(
                f"the environment renders in mode {env.render_mode!r}; make it with render_mode='rgb_array'"
            )
        self.size = size
        self._core: Any = env.unwrapped
        self._kind = _kind_of_state(self._core)
        if self._kind == "observation" and not isinstance(env.observation_space, spaces.Box):
            raise ConfigError(f"observations of {env.observation_space} are no row of numbers and there is no state")
        self._last: Any = None
        width = self._state_dim()
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Box(0, 255, (size, size, 3), np.uint8),
                "state": spaces.Box(-np.inf, np.inf, (width,), np.float64),
            }
        )

    @property
    def state(self) -> NDArray[np.float64]:
        """The state, (S,)."""
        if self._kind == "mujoco":
            data = self._core.data
            return np.concatenate([data.qpos, data.qvel]).astype(np.float64)
        if self._kind == "own":
            return np.array(self._core.state, dtype=np.float64).reshape(-1)
        return np.asarray(self._last, dtype=np.float64).reshape(-1)

    def set_state(self, state: Any) -> None:
        """Put the environment into a state.

        Raises:
            InputError: the state has another size, or the environment cannot be put into one.
        """
        wanted = np.asarray(state, dtype=np.float64)
        if self._kind == "observation":
            raise InputError(f"{self._core!r} cannot be put into a state: it is no MuJoCo environment and has no state")
        if wanted.shape != (self._state_dim(),) or not np.isfinite(wanted).all():
            raise InputError(f"a state of shape {wanted.shape} was given; it has {self._state_dim()} finite numbers")
        if self._kind == "mujoco":
            num_positions = self._core.model.nq
            self._core.set_state(wanted[:num_positions], wanted[num_positions:])
        elif hasattr(self._core, "set_state"):
            self._core.set_state(wanted)
        else:
            self._core.state = wanted.reshape(np.shape(self._core.state))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, at a state where `options` holds one; other options go to the environment."""
        given = dict(options or {})
        state = given.pop("state", None)
        self._last, info = self.env.reset(seed=seed, options=given or None)
        if state is not None:
            self.set_state(state)
        return self.observe(), {**info, "state": self.state}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step and look."""
        self._last, reward, terminated, truncated, info = self.env.step(action)
        return self.observe(), reward, terminated, truncated, {**info, "observation": self._last, "state": self.state}

    def observe(self) -> dict[str, Any]:
        """Return picture and state as they are now."""
        picture: Any = self.env.render()
        return {"pixels": resize(np.asarray(picture, dtype=np.uint8), self.size), "state": self.state}

    def _state_dim(self) -> int:
        if self._kind == "mujoco":
            return int(self._core.model.nq + self._core.model.nv)
        if self._kind == "own" and self._core.state is not None:
            return int(np.size(self._core.state))
        shape = self.env.observation_space.shape
        return int(np.prod(shape if shape is not None else ()))


def _kind_of_state(core: Any) -> str:
    if hasattr(core, "data") and hasattr(core, "model") and hasattr(core, "set_state"):
        return "mujoco"
    return "own" if hasattr(core, "state") else "observation"
