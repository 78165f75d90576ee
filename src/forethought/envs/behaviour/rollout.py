"""Episodes of a policy in a built-in system, as arrays of states and actions; pictures are drawn when they are wanted.

Legend: E episodes, T steps, S numbers of a state, A of an action.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import ConfigError
from forethought.core.rng import generator
from forethought.envs.behaviour.policy import Policy
from forethought.envs.system import Floats, Images, System


@dataclass(frozen=True)
class Episodes:
    """A batch of episodes.

    states_ETS: (E, T + 1, S), the first one the start. actions_ETA: (E, T, A); action t leaves state t.
    success_ET: (E, T), whether state t + 1 counts as the goal reached. goals_ES: (E, S). lengths_E: steps that count;
    what lies beyond them repeats the last state with zero actions. factors: name -> (E, k).
    """

    system: System
    states_ETS: Floats
    actions_ETA: Floats
    success_ET: NDArray[np.bool_]
    goals_ES: Floats
    lengths_E: NDArray[np.int64]
    factors: dict[str, Floats]

    def pixels(self, episode: int, size: int = 64) -> Images:
        """Return the pictures of one episode, (length + 1, size, size, 3)."""
        states = self.states_ETS[episode, : int(self.lengths_E[episode]) + 1]
        factors = {name: values[episode : episode + 1] for name, values in self.factors.items()}
        return self.system.render_batch(states, size, factors)


def rollout(
    system: System,
    policy: Policy,
    num_episodes: int,
    num_steps: int | None = None,
    *,
    seed: int = 0,
    batch: int = 64,
    vary: Iterable[str] = (),
    stop_at_goal: bool = False,
) -> Iterator[Episodes]:
    """Yield batches of episodes; batch number i depends on (seed, i) and the arguments only.

    num_steps: steps of an episode, the system's own number where None. vary: factors drawn anew for each episode.
    stop_at_goal: an episode ends with its first success.

    Raises:
        ConfigError: a count is not positive, or a factor is unknown.
    """
    steps = system.max_steps if num_steps is None else num_steps
    if min(num_episodes, steps, batch) < 1:
        raise ConfigError(f"num_episodes {num_episodes}, num_steps {steps} and batch {batch} must each be at least 1")
    names = tuple(vary)
    for number, begin in enumerate(range(0, num_episodes, batch)):
        rng = generator(seed, "envs.rollout", index=number)
        yield _one_batch(system, policy, min(batch, num_episodes - begin), steps, rng, names, stop_at_goal)


def _one_batch(
    system: System,
    policy: Policy,
    size: int,
    steps: int,
    rng: np.random.Generator,
    names: tuple[str, ...],
    stop_at_goal: bool,
) -> Episodes:
    factors = system.complete(system.vary(names, rng, size), size)
    starts, goals = system.draw_states(rng, factors), system.draw_states(rng, factors)
    simulation = system.begin(starts, factors)
    policy.begin(system, starts, goals, factors, rng)
    states = np.empty((size, steps + 1, system.state_dim))
    actions = np.zeros((size, steps, system.action_dim))
    success = np.zeros((size, steps), dtype=bool)
    lengths, ended = np.full(size, steps), np.zeros(size, dtype=bool)
    states[:, 0] = starts
    for t in range(steps):
        chosen = policy.act(simulation.states_BS)
        moved = simulation.step(chosen)
        states[:, t + 1] = np.where(ended[:, None], states[:, t], moved)
        actions[:, t] = np.where(ended[:, None], 0.0, chosen)
        success[:, t] = system.success(states[:, t + 1], goals, factors)
        if stop_at_goal:
            now = success[:, t] & ~ended
            lengths[now], ended = t + 1, ended | now
    return Episodes(system, states, actions, success, goals, lengths, factors)
