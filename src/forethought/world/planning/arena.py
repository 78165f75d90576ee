"""The built-in environments as arenas: many states in lock-step, set exactly, drawn in batches.

Legend: B environments, S numbers of a state, A numbers of an action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.envs import System

Array = NDArray[Any]


class SystemArena:
    """A built-in system under fixed factors of variation, as evaluation and the surprise benchmark drive it."""

    def __init__(self, system: System, size: int, factors: Mapping[str, ArrayLike] | None = None) -> None:
        self.system, self.size = system, size
        self._factors = dict(factors or {})
        self.reset(np.asarray([_middle(system)]))

    def reset(self, states_BS: Array) -> None:
        """Put environment b into state b."""
        states = self.system.check_states(states_BS)
        self._complete = self.system.complete(self._factors, len(states))
        self._simulation = self.system.begin(states, self._complete)

    def frames(self) -> Array:
        """Return the present frames, uint8 (B, H, W, 3)."""
        return self.system.paint(self._simulation.states_BS, self.size, self._complete)

    def states(self) -> Array:
        """Return the present states, (B, S)."""
        return self._simulation.states_BS.copy()

    def step(self, actions_BA: Array) -> None:
        """Apply one action to each environment; actions outside the bounds are clipped."""
        self._simulation.step(actions_BA)

    def reached(self, states_BS: Array, goals_BS: Array) -> NDArray[np.bool_]:
        """Say which states count as their goals."""
        states = self.system.check_states(states_BS)
        factors = self.system.complete(self._factors, len(states))
        return self.system.success(states, self.system.check_states(goals_BS), factors)


def _middle(system: System) -> Array:
    return (np.asarray(system.state_low) + np.asarray(system.state_high)) / 2
