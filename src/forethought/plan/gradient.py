"""Planning by gradient descent on the actions, from many starts at once, projected onto the bounds.

Legend: B environments, N starts, H horizon, A action.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.plan.noise import white_noise
from forethought.plan.problem import Plan, Problem
from forethought.plan.search import SearchState, first_state, pick, search


class _Moments(NamedTuple):
    actions_BNHA: Tensor
    first_BNHA: Tensor
    second_BNHA: Tensor
    num_steps: int


@config
class GradientPlanner:
    """Descent on the actions of many starts at once; the answer is the best candidate seen.

    Start 0 is the warm start or the prior's mean, the others are drawn around it with the prior's spread times
    `initial_std`. A start whose gradient is not finite stays where it is. Every start steps on its own cost only.
    The settings are those of the gradient planner compared with CEM in arXiv 2603.19312, table 10.
    """

    num_candidates: int = 100
    num_iterations: int = 30
    learning_rate: float = 0.1
    initial_std: float = 1.0
    optimiser: Literal["adam", "rmsprop", "sgd"] = "adam"

    needs_gradient = True
    num_averaged = 1

    def __post_init__(self) -> None:
        if self.num_candidates < 1 or self.num_iterations < 1 or not self.learning_rate > 0.0:
            raise ConfigError(
                f"num_candidates is {self.num_candidates}, num_iterations {self.num_iterations} and learning_rate "
                f"{self.learning_rate}; the counts are at least 1 and the rate is positive"
            )

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator,
        *,
        warm_BHA: Tensor | None = None,
        deadline_s: float | None = None,
    ) -> Plan:
        """Plan (see `Planner`).

        Raises:
            ConfigError: no gradient flows from the objective to the actions.
        """
        return search(self, problem, generator, warm_BHA=warm_BHA, deadline_s=deadline_s)  # pyright: ignore[reportArgumentType]

    def begin(self, problem: Problem, mean_BHA: Tensor, std_BHA: Tensor, generator: torch.Generator) -> SearchState:
        """Return the starts."""
        num_environments, horizon, action_dim = problem.shape
        shape = (num_environments, self.num_candidates, horizon, action_dim)
        noise = white_noise(shape, generator, mean_BHA)
        actions = mean_BHA[:, None] + self.initial_std * std_BHA[:, None] * noise
        actions[:, 0] = mean_BHA
        moments = _Moments(problem.clip(actions), torch.zeros_like(actions), torch.zeros_like(actions), 0)
        return first_state(mean_BHA, std_BHA * self.initial_std, moments)

    def sample(self, problem: Problem, state: SearchState, iteration: int, generator: torch.Generator) -> Tensor:
        """Return where the starts have come to."""
        return state.memory.actions_BNHA

    def update(self, problem: Problem, state: SearchState, actions_BNHA: Tensor, costs_BN: Tensor) -> SearchState:
        """Return the state one step of descent further."""
        if not costs_BN.requires_grad:
            raise ConfigError(
                "no gradient flows from the costs to the actions; give differentiable dynamics and objective, "
                "or plan by sampling (CEM, ICEM, MPPI)"
            )
        (gradient,) = torch.autograd.grad(costs_BN.sum(), actions_BNHA)
        usable = _usable(gradient, costs_BN)
        step, moments = self._step(torch.where(usable, gradient, 0.0), state.memory)
        moved = problem.clip(actions_BNHA.detach() - torch.where(usable, step, 0.0))
        return replace(
            state,
            mean_BHA=pick(moved, costs_BN.detach().argmin(dim=1)),
            std_BHA=moved.std(dim=1, correction=0),
            memory=moments._replace(actions_BNHA=moved),
        )

    def answer(self, problem: Problem, state: SearchState) -> Tensor:
        """Return the best candidate seen."""
        return state.best_BHA

    def _step(self, gradient: Tensor, moments: _Moments) -> tuple[Tensor, _Moments]:
        """Return the step of the optimiser and its moments; Adam with betas 0.9 and 0.999, RMSProp with 0.99."""
        count = moments.num_steps + 1
        if self.optimiser == "sgd":
            return self.learning_rate * gradient, moments._replace(num_steps=count)
        if self.optimiser == "rmsprop":
            second = moments.second_BNHA.lerp(gradient.square(), 0.01)
            step = self.learning_rate * gradient / (second.sqrt() + 1e-8)
            return step, moments._replace(second_BNHA=second, num_steps=count)
        first = moments.first_BNHA.lerp(gradient, 0.1)
        second = moments.second_BNHA.lerp(gradient.square(), 0.001)
        root = (second / (1.0 - 0.999**count)).sqrt() + 1e-8
        step = self.learning_rate * first / (1.0 - 0.9**count) / root
        return step, moments._replace(first_BNHA=first, second_BNHA=second, num_steps=count)


def _usable(gradient: Tensor, costs_BN: Tensor) -> Tensor:
    """Return which starts have a finite cost and a finite gradient, (B, N, 1, 1)."""
    finite = torch.isfinite(gradient).flatten(start_dim=2).all(dim=2) & torch.isfinite(costs_BN)
    return finite[:, :, None, None]
