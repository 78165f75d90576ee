"""A double integrator with closed-form answers: data, its Gymnasium environment, and controllers to compare."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from forethought.control import Agent, AgentConfig, Objective, SSRConfig
from forethought.control.models import JointDiffuser, JointHalves
from forethought.data.episodes import Episodes

STEP = 0.2
A = np.array([[1.0, STEP], [0.0, 1.0]])
B = np.array([STEP * STEP / 2, STEP])


def move(state: NDArray[np.float64], action: float, gain: float = 1.0) -> NDArray[np.float64]:
    """s' = A s + B a, exactly."""
    return A @ state + B * gain * float(np.clip(action, -1, 1))


def rollout(states_BO: torch.Tensor, actions_BNFA: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """The closed-form states (B, N, F, 2) of actions, clipped as the body clips them."""
    place = states_BO[:, None].expand(-1, actions_BNFA.shape[1], -1)
    matrix, push = torch.tensor(A, dtype=torch.float32), torch.tensor(B, dtype=torch.float32)
    states = []
    for action in actions_BNFA.clamp(-1, 1).unbind(2):
        place = place @ matrix.T + gain * action * push
        states.append(place)
    return torch.stack(states, 2)


def episodes(
    num: int, *, seed: int, gain: float = 1.0, reach: float = 1.0, hold: int = 8, length: int = 25
) -> Episodes:
    """Uniform actions in ±reach, each held for 1 to `hold` steps; the reward is minus the squared position."""
    rng = np.random.default_rng(seed)
    seen, done, last = [], [], []
    for _ in range(num):
        state, left, action = rng.uniform(-1, 1, 2) * [2.0, 1.0], 0, 0.0
        for _ in range(length):
            if left == 0:
                action, left = rng.uniform(-reach, reach), int(rng.integers(1, hold + 1))
            left -= 1
            seen.append(state)
            done.append([action])
            state = move(state, action, gain)
        last.append(state)
    observations = np.array(seen, np.float32)
    return Episodes(
        {
            "observations": observations,
            "actions": np.array(done, np.float32),
            "rewards": -(observations[:, 0] ** 2),
        },
        starts=np.arange(num) * length,
        lengths=np.full(num, length),
        terminated=np.zeros(num, bool),
        truncated=np.ones(num, bool),
        finals={"observations": np.array(last, np.float32)},
    )


def towards(goal: float) -> Objective:
    """Be at the goal, and slow."""
    return Objective(lambda before, action, after: -((after[..., 0] - goal) ** 2) - 0.1 * after[..., 1] ** 2)


def score(agent: Agent, *, gain: float = 1.0, steps: int = 40, num: int = 4) -> float:
    """Closeness to the goal in [0, 1], mean over steps, goals and starts on the other side."""
    rng = np.random.default_rng(3)
    total = 0.0
    for goal in (1.0, -1.0):
        agent.set_objective(towards(goal))
        for _ in range(num):
            agent.reset()
            state = np.array([-goal * rng.uniform(0.5, 1.5), 0.0])
            for _ in range(steps):
                state = move(state, float(agent.act(state)[0]), gain)
                total += float(np.exp(-2 * (state[0] - goal) ** 2))
    return total / (2 * num * steps)


def joint_agent(model: JointDiffuser) -> Agent:
    """Diffuser's joint model behind the same planner."""
    halves = JointHalves(model)
    return Agent(
        Function(halves.propose, model.horizon),
        Function(halves.predict, model.horizon),
        body=model.body,
        objective=towards(0.0),
        settings=AgentConfig(execute=2, planner=SSRConfig(warm_start=False)),
    )


class Function:
    """A function with a horizon, as an agent wants its parts."""

    def __init__(self, function: Any, horizon: int) -> None:
        self._function, self.horizon = function, horizon

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class Integrator(gymnasium.Env):
    """The double integrator as an environment of 30 steps; it ends beyond ±4."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._state, self._steps = self.np_random.uniform(-1, 1, 2), 0
        return self._state.astype(np.float32), {}

    def step(self, action: Any) -> Any:
        self._state, self._steps = move(self._state, float(action[0]), self.gain), self._steps + 1
        observation = self._state.astype(np.float32)
        return observation, -float(self._state[0] ** 2), bool(abs(self._state[0]) > 4), self._steps >= 30, {}
