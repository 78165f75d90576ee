"""What a built-in environment is made of: a batched system of states, its factors of variation, and a simulation.

Everything is NumPy and batched: states (B, S), actions (B, A), pictures (B, size, size, 3) uint8. A system holds no
state; a simulation does. Factors of variation are arrays by name, (B, k): colours, sizes, the place of a door.

Legend: B environments, S numbers of a state, A of an action, k of a factor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.core.errors import ConfigError, InputError, unknown_name

Floats = NDArray[np.float64]
Images = NDArray[np.uint8]
Factors = Mapping[str, Floats]

MIN_SIZE, MAX_SIZE = 16, 1024


@dataclass(frozen=True)
class Factor:
    """One thing that may vary between episodes: its default and the box that it is drawn from, k numbers each.

    `changes_dynamics` says whether it changes what actions do, or only what one sees.
    """

    name: str
    default: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    changes_dynamics: bool = False
    whole: bool = False

    def draw(self, rng: np.random.Generator, num_environments: int) -> Floats:
        """Return uniform draws, (B, k)."""
        low, high = np.array(self.low), np.array(self.high)
        if self.whole:
            return rng.integers(low.astype(int), high.astype(int) + 1, (num_environments, len(low))).astype(float)
        return rng.uniform(low, high, (num_environments, len(low)))


def colour(name: str, default: tuple[int, int, int]) -> Factor:
    """Return a factor that is an RGB colour, 0 to 255."""
    red, green, blue = default
    return Factor(name, (float(red), float(green), float(blue)), (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))


class System(ABC):
    """A small world: how states are drawn, moved, judged and drawn as images, for many environments at once."""

    name: str
    state_names: tuple[str, ...]
    state_low: tuple[float, ...]
    state_high: tuple[float, ...]
    action_low: tuple[float, ...] = (-1.0, -1.0)
    action_high: tuple[float, ...] = (1.0, 1.0)
    factors: tuple[Factor, ...]
    max_steps: int

    @property
    def state_dim(self) -> int:
        """How many numbers a state has."""
        return len(self.state_names)

    @property
    def action_dim(self) -> int:
        """How many numbers an action has."""
        return len(self.action_low)

    @abstractmethod
    def draw_states(self, rng: np.random.Generator, factors: Factors) -> Floats:
        """Return random states (B, S), valid under the factors."""

    @abstractmethod
    def success(self, states_BS: Floats, goals_BS: Floats, factors: Factors) -> NDArray[np.bool_]:
        """Say which states have reached their goal state, (B,)."""

    @abstractmethod
    def paint(self, states_BS: Floats, size: int, factors: Factors) -> Images:
        """Return pictures of states, (B, size, size, 3), under factors that are complete."""

    @abstractmethod
    def begin(self, states_BS: Floats, factors: Factors) -> Simulation:
        """Return a simulation that stands at the states."""

    def rewards(self, states_BS: Floats, goals_BS: Floats, factors: Factors) -> Floats:
        """Return a reward for being at the states: 1 for success, else 0, where a system knows no better; (B,)."""
        return self.success(states_BS, goals_BS, factors).astype(np.float64)

    def render_batch(
        self, states_BS: ArrayLike, size: int = 64, factors: Mapping[str, ArrayLike] | None = None
    ) -> Images:
        """Return pictures of states, (B, size, size, 3) uint8, 16 to 1024 px.

        Raises:
            InputError: the states have another width or are not finite, or the size is outside the range.
            ConfigError: a factor is unknown or out of its range.
        """
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise InputError(f"a picture of {size} px was asked for; give {MIN_SIZE} to {MAX_SIZE}")
        states = self.check_states(states_BS)
        return self.paint(states, size, self.complete(factors, len(states)))

    def check_states(self, states_BS: ArrayLike) -> Floats:
        """Return states as a float64 array (B, S).

        Raises:
            InputError: the states have another width or are not finite.
        """
        states = np.array(states_BS, dtype=np.float64, ndmin=2)
        if states.ndim != 2 or states.shape[1] != self.state_dim:
            raise InputError(
                f"{self.name} was given states of shape {states.shape}; a state has {self.state_dim} numbers: "
                f"{', '.join(self.state_names)}"
            )
        if not np.isfinite(states).all():
            raise InputError(f"{self.name} was given a state that is not finite; every number must be")
        return states

    def complete(self, factors: Mapping[str, ArrayLike] | None, num_environments: int) -> dict[str, Floats]:
        """Return every factor as an array (B, k): the ones given, the defaults for the rest.

        Raises:
            ConfigError: a factor is unknown, has another size or lies outside its range.
        """
        known = {factor.name: factor for factor in self.factors}
        given = dict(factors or {})
        for name in given:
            if name not in known:
                raise unknown_name(f"factor of {self.name}", name, known)
        return {
            name: _broadcast(factor, given.get(name, factor.default), num_environments)
            for name, factor in known.items()
        }

    def vary(self, names: Iterable[str], rng: np.random.Generator, num_environments: int) -> dict[str, Floats]:
        """Draw the named factors at random, each (B, k), in the order of the system's list; "all" names every one.

        Raises:
            ConfigError: a name is unknown.
        """
        known = [factor.name for factor in self.factors]
        wanted = set(names)
        if "all" in wanted:
            wanted = set(known)
        for name in sorted(wanted - set(known)):
            raise unknown_name(f"factor of {self.name}", name, [*known, "all"])
        return {factor.name: factor.draw(rng, num_environments) for factor in self.factors if factor.name in wanted}


def _broadcast(factor: Factor, given: ArrayLike, num_environments: int) -> Floats:
    values = np.asarray(given, dtype=np.float64)
    try:
        full = np.broadcast_to(values, (num_environments, len(factor.default)))
    except ValueError:
        raise ConfigError(
            f"factor {factor.name!r} was given the shape {values.shape}; it has {len(factor.default)} numbers, one row "
            f"or one for each of {num_environments} environments"
        ) from None
    inside = (full >= np.array(factor.low) - 1e-9) & (full <= np.array(factor.high) + 1e-9)
    if not inside.all():
        raise ConfigError(f"factor {factor.name!r} was given {values.tolist()}; allowed: {factor.low} to {factor.high}")
    return full


class Simulation(ABC):
    """States that move: `step(actions)` changes `states_BS` in place of the old ones."""

    def __init__(self, system: System, states_BS: Floats, factors: Factors) -> None:
        self.system = system
        self.factors = dict(factors)
        self.states_BS = states_BS.copy()

    def step(self, actions_BA: ArrayLike) -> Floats:
        """Clip the actions to their bounds, apply them, and return the new states (B, S).

        Raises:
            InputError: the actions have another shape or are not finite.
        """
        actions = np.asarray(actions_BA, dtype=np.float64)
        wanted = (len(self.states_BS), self.system.action_dim)
        if actions.shape != wanted or not np.isfinite(actions).all():
            raise InputError(
                f"{self.system.name} was given actions of shape {actions.shape} "
                f"({'all finite' if np.isfinite(actions).all() else 'not all finite'}); "
                f"it needs finite actions of shape (B, A) = {wanted}"
            )
        self.states_BS = self.advance(np.clip(actions, self.system.action_low, self.system.action_high))
        return self.states_BS

    @abstractmethod
    def advance(self, actions_BA: Floats) -> Floats:
        """Return the states after actions that are inside the bounds."""

    def place(self, states_BS: Floats, which_B: NDArray[np.bool_] | None = None) -> None:
        """Put environments into states: all of them, or those that `which_B` marks (a reset, a teleport)."""
        chosen = np.ones(len(self.states_BS), dtype=bool) if which_B is None else which_B
        self.states_BS = np.where(chosen[:, None], states_BS, self.states_BS)

    def refactor(self, factors: Mapping[str, Any], which_B: NDArray[np.bool_]) -> None:
        """Give the marked environments other factors, complete arrays (B, k)."""
        for name, values in factors.items():
            self.factors[name] = np.where(which_B[:, None], values, self.factors[name])


class MovingSystem(System):
    """A system whose next state is a pure function of state, action and factors."""

    @abstractmethod
    def move(self, states_BS: Floats, actions_BA: Floats, factors: Factors) -> Floats:
        """Return the states one step later; actions lie inside the bounds."""

    def begin(self, states_BS: Floats, factors: Factors) -> Simulation:
        """Return a simulation that stands at the states."""
        return _Moving(self, states_BS, factors)


class _Moving(Simulation):
    def __init__(self, system: MovingSystem, states_BS: Floats, factors: Factors) -> None:
        super().__init__(system, states_BS, factors)
        self._move = system.move

    def advance(self, actions_BA: Floats) -> Floats:
        return self._move(self.states_BS, actions_BA, self.factors)
