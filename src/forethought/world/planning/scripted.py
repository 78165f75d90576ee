"""Scripted behaviour as a policy beside the others: it sees true states, and so says what the data's makers achieve.

Legend: B environments, S numbers of a state, H W rows and columns, A numbers of an action.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from forethought.core.rng import generator
from forethought.envs import System
from forethought.envs import behaviour as behaviours
from forethought.world.planning.policies import Array


@runtime_checkable
class Informed(Protocol):
    """A policy that is told states: goals before `begin`, the present ones before every `act`."""

    def tell_goals(self, states_BS: NDArray[Any], goals_BS: NDArray[Any]) -> None:
        """Receive start and goal states."""
        ...

    def tell_states(self, states_BS: NDArray[Any]) -> None:
        """Receive the present states."""
        ...


class ScriptedPolicy:
    """A behaviour of `forethought.envs.behaviour` under default factors; deterministic in the seed of `begin`."""

    def __init__(self, system: System, behaviour: behaviours.Policy) -> None:
        self._system, self._behaviour = system, behaviour
        self._states: Array = np.empty((0, system.state_dim))
        self._goals: Array = self._states

    def tell_goals(self, states_BS: NDArray[Any], goals_BS: NDArray[Any]) -> None:
        """Receive start and goal states."""
        self._states, self._goals = self._system.check_states(states_BS), self._system.check_states(goals_BS)

    def tell_states(self, states_BS: NDArray[Any]) -> None:
        """Receive the present states."""
        self._states = np.asarray(states_BS, np.float64)

    def begin(self, goals_BHWC: Array, seed: int) -> None:
        """Begin the behaviour at the states and goals that it was told."""
        factors = self._system.complete(None, len(self._states))
        self._behaviour.begin(self._system, self._states, self._goals, factors, generator(seed, "world.scripted"))

    def act(self, frames_BHWC: Array) -> Array:
        """Return the behaviour's actions in the states that it was told."""
        return self._behaviour.act(self._states).astype(np.float32)
