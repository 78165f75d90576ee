"""Behaviour policies for collecting data: what one is, the random ones, and mixtures.

Legend: B environments, S numbers of a state, A of an action, M policies of a mixture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import ConfigError
from forethought.envs.system import Factors, Floats, System


class Policy(ABC):
    """Actions for a batch of environments; `begin` is called at the start of every batch of episodes.

    A policy draws from the generator that `begin` was given and from nothing else.
    """

    def begin(
        self, system: System, states_BS: Floats, goals_BS: Floats, factors: Factors, rng: np.random.Generator
    ) -> None:
        """Take over a batch of environments at the start of their episodes."""
        self.system, self.factors, self.rng = system, factors, rng
        self.goals_BS = goals_BS.copy()

    @abstractmethod
    def act(self, states_BS: Floats) -> Floats:
        """Return actions (B, A) inside the bounds of the system."""

    def clip(self, actions_BA: Floats) -> Floats:
        """Return actions moved inside the bounds."""
        return np.clip(actions_BA, self.system.action_low, self.system.action_high)


class Still(Policy):
    """Does nothing: zero actions, or the nearest that the bounds allow (the no-op baseline)."""

    def act(self, states_BS: Floats) -> Floats:
        """Return zeros."""
        return self.clip(np.zeros((len(states_BS), self.system.action_dim)))


class UniformRandom(Policy):
    """Uniform actions, independent from step to step (the random baseline)."""

    def act(self, states_BS: Floats) -> Floats:
        """Return uniform draws."""
        size = (len(states_BS), self.system.action_dim)
        return self.rng.uniform(self.system.action_low, self.system.action_high, size)


class OrnsteinUhlenbeck(Policy):
    """Actions that wander: correlated over `1 / rate` steps, with a standing deviation of `spread` half-ranges."""

    def __init__(self, rate: float = 0.15, spread: float = 0.6) -> None:
        if not (0.0 < rate <= 1.0 and spread > 0.0):
            raise ConfigError(f"rate is {rate} and spread {spread}; rate lies in (0, 1], spread is positive")
        self.rate, self.spread = rate, spread

    def begin(
        self, system: System, states_BS: Floats, goals_BS: Floats, factors: Factors, rng: np.random.Generator
    ) -> None:
        """Begin at a draw of the standing distribution."""
        super().begin(system, states_BS, goals_BS, factors, rng)
        self._noise = self.spread * rng.standard_normal((len(states_BS), system.action_dim))

    def act(self, states_BS: Floats) -> Floats:
        """Return the actions of a walk that keeps its standing deviation."""
        low, high = np.array(self.system.action_low), np.array(self.system.action_high)
        actions = (low + high) / 2.0 + self._noise * (high - low) / 2.0
        keep = 1.0 - self.rate
        fresh = self.rng.standard_normal(self._noise.shape)
        self._noise = keep * self._noise + self.spread * np.sqrt(1.0 - keep * keep) * fresh
        return self.clip(actions)


class Noisy(Policy):
    """Another policy with Gaussian noise on its actions, `spread` in half-ranges."""

    def __init__(self, policy: Policy, spread: float) -> None:
        self.policy, self.spread = policy, spread

    def begin(
        self, system: System, states_BS: Floats, goals_BS: Floats, factors: Factors, rng: np.random.Generator
    ) -> None:
        """Begin the other policy."""
        super().begin(system, states_BS, goals_BS, factors, rng)
        self.policy.begin(system, states_BS, goals_BS, factors, rng)

    def act(self, states_BS: Floats) -> Floats:
        """Return the other policy's actions, disturbed."""
        half = (np.array(self.system.action_high) - np.array(self.system.action_low)) / 2.0
        actions = self.policy.act(states_BS)
        return self.clip(actions + self.spread * half * self.rng.standard_normal(actions.shape))


class Mixture(Policy):
    """One of several policies for each environment's episode, drawn by weight.

    Raises:
        ConfigError: there is no policy, or a weight is negative, or all are zero.
    """

    def __init__(self, parts: Sequence[tuple[float, Policy]]) -> None:
        weights = np.array([weight for weight, _ in parts])
        if len(parts) == 0 or (weights < 0).any() or not weights.sum() > 0:
            raise ConfigError(f"a mixture was given the weights {weights.tolist()}; give at least one positive weight")
        self.weights_M, self.policies = weights / weights.sum(), [policy for _, policy in parts]
        self.chosen_B: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def begin(
        self, system: System, states_BS: Floats, goals_BS: Floats, factors: Factors, rng: np.random.Generator
    ) -> None:
        """Draw a policy for every environment and begin each with its own rows."""
        super().begin(system, states_BS, goals_BS, factors, rng)
        self.chosen_B = rng.choice(len(self.policies), size=len(states_BS), p=self.weights_M)
        for number, policy in enumerate(self.policies):
            rows = self.chosen_B == number
            part = {name: values[rows] for name, values in factors.items()}
            policy.begin(system, states_BS[rows], goals_BS[rows], part, rng)

    def act(self, states_BS: Floats) -> Floats:
        """Return each environment's action from its own policy."""
        actions = np.zeros((len(states_BS), self.system.action_dim))
        for number, policy in enumerate(self.policies):
            rows = self.chosen_B == number
            if rows.any():
                actions[rows] = policy.act(states_BS[rows])
        return actions
