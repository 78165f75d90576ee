"""Gymnasium environments over a system: one at a time, or many in lock-step.

An observation is a picture ("pixels"), the state ("state", float64), or a dictionary of both. Options of reset:
"state" (exact start), "goal" (a goal state), "factors" (name -> numbers), "vary" (names to draw at random, or "all").

Legend: B environments, S numbers of a state, A of an action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from forethought.core.errors import ConfigError, InputError, unknown_name
from forethought.envs.system import MAX_SIZE, MIN_SIZE, Factors, Floats, Images, Simulation, System

Observation = Literal["pixels", "state", "both"]
OPTIONS = ("state", "goal", "factors", "vary")


def _spaces(system: System, observation: Observation, size: int) -> tuple[spaces.Space[Any], spaces.Box]:
    """Return the observation space and the action space of one environment."""
    if observation not in get_args(Observation):
        raise unknown_name("kind of observation", observation, get_args(Observation))
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ConfigError(f"size is {size}; pictures have {MIN_SIZE} to {MAX_SIZE} px")
    pixels = spaces.Box(0, 255, (size, size, 3), np.uint8)
    state = spaces.Box(np.array(system.state_low), np.array(system.state_high), dtype=np.float64)
    actions = spaces.Box(
        np.array(system.action_low, dtype=np.float32), np.array(system.action_high, dtype=np.float32), dtype=np.float32
    )
    every = {"pixels": pixels, "state": state, "both": spaces.Dict({"pixels": pixels, "state": state})}
    return every[observation], actions


def _observe(system: System, observation: Observation, size: int, states_BS: Floats, factors: Factors) -> Any:
    if observation == "state":
        return states_BS.copy()
    pixels = system.paint(states_BS, size, factors)
    return pixels if observation == "pixels" else {"pixels": pixels, "state": states_BS.copy()}


class _Episode:
    """What both kinds of environment share: a simulation, goals, factors, and how a reset fills them."""

    def __init__(self, system: System, num_environments: int) -> None:
        self.system, self.num_environments = system, num_environments
        self.simulation: Simulation | None = None
        self.goals_BS = np.zeros((num_environments, system.state_dim))
        self.steps_B = np.zeros(num_environments, dtype=np.int64)

    def reset(self, rng: np.random.Generator, options: Mapping[str, Any] | None, which_B: NDArray[np.bool_]) -> None:
        """Begin new episodes in the marked environments.

        Raises:
            ConfigError: an option or a factor is unknown. InputError: a state or a goal does not fit.
        """
        given = dict(options or {})
        for name in given:
            if name not in OPTIONS:
                raise unknown_name("reset option", name, OPTIONS)
        system = self.system
        drawn = system.vary(_names(given.get("vary", ())), rng, self.num_environments)
        factors = system.complete({**drawn, **given.get("factors", {})}, self.num_environments)
        states = self._states(given.get("state"), rng, factors, "state")
        goals = self._states(given.get("goal"), rng, factors, "goal")
        self.goals_BS = np.where(which_B[:, None], goals, self.goals_BS)
        self.steps_B = np.where(which_B, 0, self.steps_B)
        if self.simulation is None or which_B.all():
            self.simulation = system.begin(states, factors)
            return
        self.simulation.refactor(factors, which_B)
        self.simulation.place(states, which_B)

    def _states(self, given: Any, rng: np.random.Generator, factors: Factors, what: str) -> Floats:
        if given is None:
            return self.system.draw_states(rng, factors)
        states = self.system.check_states(given)
        low, high = np.array(self.system.state_low), np.array(self.system.state_high)
        if ((states < low) | (states > high)).any():
            raise InputError(f"the {what} {states.tolist()} lies outside {low.tolist()} to {high.tolist()}")
        return np.broadcast_to(states, (self.num_environments, self.system.state_dim))

    def running(self) -> Simulation:
        """Return the simulation.

        Raises:
            InputError: reset was never called.
        """
        if self.simulation is None:
            raise InputError("the environment has no state yet; call reset() first")
        return self.simulation

    def advance(self, actions_BA: Any) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Return the new states, rewards and successes."""
        simulation = self.running()
        states = simulation.step(actions_BA)
        self.steps_B += 1
        won = self.system.success(states, self.goals_BS, simulation.factors)
        return states, self.system.rewards(states, self.goals_BS, simulation.factors), won


def _names(given: Any) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


class SystemEnv(gymnasium.Env[Any, Any]):
    """One environment over a system.

    observation: "pixels", "state" or "both". size: side of a picture that is observed. render_size: of `render()`.
    The episode terminates when the goal is reached. `info` holds state, goal, is_success and the factors.

    Raises:
        ConfigError: the kind of observation or a size is unknown or out of range.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (the interface)

    def __init__(
        self,
        system: System,
        observation: Observation = "pixels",
        size: int = 64,
        render_mode: str | None = None,
        render_size: int = 224,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"render_mode is {render_mode!r}; None and 'rgb_array' are known")
        self.system, self.render_mode = system, render_mode
        self.observation_space, self.action_space = _spaces(system, observation, size)
        self._observation: Observation = observation
        self._size, self._render_size = size, render_size
        self._episode = _Episode(system, 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode (options: state, goal, factors, vary).

        Raises:
            ConfigError: an option or a factor is unknown. InputError: a state or a goal does not fit.
        """
        super().reset(seed=seed)
        self._episode.reset(self.np_random, options, np.ones(1, dtype=bool))
        return self._observe(), self._info(False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Apply one action, clipped to its bounds.

        Raises:
            InputError: the action has another shape or is not finite, or reset was never called.
        """
        _, rewards, won = self._episode.advance(np.asarray(action)[None])
        return self._observe(), float(rewards[0]), bool(won[0]), False, self._info(bool(won[0]))

    def render(self) -> Any:
        """Return a picture of the state, (render_size, render_size, 3) uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        simulation = self._episode.running()
        return self.system.paint(simulation.states_BS, self._render_size, simulation.factors)[0]

    @property
    def state(self) -> Floats:
        """The state, (S,)."""
        return self._episode.running().states_BS[0].copy()

    @property
    def goal(self) -> Floats:
        """The goal state, (S,)."""
        return self._episode.goals_BS[0].copy()

    @property
    def factors(self) -> dict[str, Floats]:
        """The factors of this episode, name -> (k,)."""
        return {name: values[0].copy() for name, values in self._episode.running().factors.items()}

    def set_state(self, state: Any) -> None:
        """Put the environment into a state in the middle of an episode (a teleport); the goal stays."""
        self._episode.running().place(self.system.check_states(state))

    def set_factors(self, factors: Mapping[str, Any]) -> None:
        """Change factors in the middle of an episode (a recolour); those not named stay.

        Raises:
            ConfigError: a factor is unknown or out of its range.
        """
        self._episode.running().refactor(self.system.complete({**self.factors, **factors}, 1), np.ones(1, dtype=bool))

    def observe(self) -> Any:
        """Return the observation of the state as it is now."""
        return self._observe()

    def render_batch(self, states: Any, size: int = 64, factors: Mapping[str, Any] | None = None) -> Images:
        """Return pictures of states, (B, size, size, 3) (see `System.render_batch`)."""
        return self.system.render_batch(states, size, factors)

    def _observe(self) -> Any:
        simulation = self._episode.running()
        seen = _observe(self.system, self._observation, self._size, simulation.states_BS, simulation.factors)
        return {name: values[0] for name, values in seen.items()} if isinstance(seen, dict) else seen[0]

    def _info(self, won: bool) -> dict[str, Any]:
        return {"state": self.state, "goal": self.goal, "is_success": won, "factors": self.factors}


class SystemVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Many environments over a system in lock-step, moved and drawn in one call; an ended one resets at its next step.

    Every environment is reset by its own generator stream of one seed, so a row's episode depends on the seed only.
    `step_limit` truncates (None for the system's own); `options` of reset take one row or one for each environment.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (the interface)
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        system: System,
        num_envs: int = 1,
        observation: Observation = "pixels",
        size: int = 64,
        render_mode: str | None = None,
        render_size: int = 224,
        step_limit: int | None = None,
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"num_envs is {num_envs}; it must be at least 1")
        self.system, self.num_envs, self.render_mode = system, num_envs, render_mode
        self.single_observation_space, self.single_action_space = _spaces(system, observation, size)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self._observation: Observation = observation
        self._size, self._render_size = size, render_size
        self._limit = step_limit or system.max_steps
        self._episode = _Episode(system, num_envs)
        self._ended_B = np.zeros(num_envs, dtype=bool)
        self._options: dict[str, Any] | None = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment; later automatic resets use the same options.

        Raises:
            ConfigError: an option is unknown, or a list of seeds was given.
        """
        if isinstance(seed, list):
            raise ConfigError(
                "a list of seeds was given; the environments of one batch share one seed: give an integer"
            )
        super().reset(seed=seed)
        self._options = options
        self._episode.reset(self.np_random, options, np.ones(self.num_envs, dtype=bool))
        self._ended_B[:] = False
        return self._observe(), self._info(np.zeros(self.num_envs, dtype=bool))

    def step(self, actions: Any) -> tuple[Any, Floats, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Apply one action to every environment; those that ended at the last step are reset instead."""
        again_B = self._ended_B.copy()
        _, rewards, won = self._episode.advance(actions)
        if again_B.any():
            self._episode.reset(self.np_random, self._options, again_B)
            rewards, won = np.where(again_B, 0.0, rewards), won & ~again_B
        truncated = (self._episode.steps_B >= self._limit) & ~won
        self._ended_B = won | truncated
        return self._observe(), rewards, won, truncated, self._info(won)

    def render(self) -> Any:
        """Return one picture an environment; None without a render mode."""
        if self.render_mode is None:
            return None
        simulation = self._episode.running()
        return tuple(self.system.paint(simulation.states_BS, self._render_size, simulation.factors))

    def _observe(self) -> Any:
        simulation = self._episode.running()
        return _observe(self.system, self._observation, self._size, simulation.states_BS, simulation.factors)

    def _info(self, won_B: NDArray[np.bool_]) -> dict[str, Any]:
        simulation = self._episode.running()
        return {"state": simulation.states_BS.copy(), "goal": self._episode.goals_BS.copy(), "is_success": won_B}
