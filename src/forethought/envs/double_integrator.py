"""A double integrator: a mass on a line, pushed by one force, whose every future is known in closed form.

    s' = A s + b gain clip(a, -1, 1) [+ gust on the velocity],  A = (1 h; 0 1),  b = (h^2 / 2, h)

The reward is exp(-2 (x - goal)^2): 1 at the goal. `gain` -1 is the simplest defect there is; a gust is a change of the
velocity, normal with `gust_size`, that comes at a step with probability `gusts`.

Legend: B environments, F steps, S = 2 (position, velocity).
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from forethought.core.errors import ConfigError

Floats = NDArray[np.float64]
STEP = 0.2
MATRIX = np.array([[1.0, STEP], [0.0, 1.0]])
PUSH = np.array([STEP * STEP / 2, STEP])
BOUND = 10.0


def rollout(states_BS: ArrayLike, actions_BF: ArrayLike, *, gain: float = 1.0) -> Floats:
    """Return the states that actions lead to without gusts, (B, F, S), exactly."""
    states, found = np.asarray(states_BS, np.float64), []
    for actions_B in np.clip(np.asarray(actions_BF, np.float64), -1.0, 1.0).T:
        states = states @ MATRIX.T + gain * actions_B[:, None] * PUSH
        found.append(states)
    return np.stack(found, axis=1)


class DoubleIntegrator(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """The mass as an environment; an episode begins at rest within 1 of the far side and ends beyond a distance of 10.

    Raises:
        ConfigError: a number is not finite, or `gusts` is no probability.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        *,
        goal: float = 1.0,
        gain: float = 1.0,
        gusts: float = 0.0,
        gust_size: float = 0.5,
        render_mode: str | None = None,
    ) -> None:
        if not np.isfinite([goal, gain, gust_size]).all() or not 0.0 <= gusts <= 1.0:
            raise ConfigError(
                f"goal {goal}, gain {gain}, gusts {gusts} of {gust_size}: give finite numbers, gusts in [0, 1]"
            )
        self.goal, self.gain, self.gusts, self.gust_size, self.render_mode = goal, gain, gusts, gust_size, render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._state = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode; `options["state"]` gives its state."""
        super().reset(seed=seed)
        drawn = np.array([-np.sign(self.goal or 1.0) + self.np_random.uniform(-1.0, 1.0), 0.0])
        self._state = np.asarray((options or {}).get("state", drawn), np.float64).reshape(2)
        return self._state.astype(np.float32), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Push for one step of 0.2."""
        self._state = rollout(self._state[None], np.asarray(action).reshape(1, 1), gain=self.gain)[0, 0]
        # Drawn whether it comes or not, so that one seed gives one weather for every policy.
        comes, size = self.np_random.random() < self.gusts, self.gust_size * self.np_random.standard_normal()
        self._state[1] += size if comes else 0.0
        away = self._state[0] - self.goal
        return (
            self._state.astype(np.float32),
            float(np.exp(-2.0 * away * away)),
            bool(abs(self._state[0]) > BOUND),
            False,
            {},
        )
