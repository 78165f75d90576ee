"""The one loop of all searching planners: sample, predict, judge, update; a rule says how to sample and update.

Best so far, costs that are not finite, the deadline and the trace are handled here, once. Environments never mix:
everything is done a row at a time, so the plan of one does not depend on the problems of the others.

Legend: B environments, N candidates, K elites, H horizon, A action, S state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from forethought.core.errors import ConfigError
from forethought.plan.problem import Candidates, Iteration, Plan, Population, Problem

Clock = Callable[[], float]


@dataclass(frozen=True)
class SearchState:
    """What a rule carries from one iteration to the next.

    mean_BHA, std_BHA: the search distribution. best_BHA, cost_B: the best candidate so far (kept by the loop).
    memory: whatever else a rule needs (kept elites, the moments of an optimiser).
    """

    mean_BHA: Tensor
    std_BHA: Tensor
    best_BHA: Tensor
    cost_B: Tensor
    memory: Any = None


class Rule(Protocol):
    """How a planner samples candidates and learns from their costs."""

    num_iterations: int

    @property
    def num_averaged(self) -> int:
        """How many of the best candidates the trace averages over."""
        ...

    @property
    def needs_gradient(self) -> bool:
        """Whether costs must be differentiable in the actions."""
        ...

    def begin(self, problem: Problem, mean_BHA: Tensor, std_BHA: Tensor, generator: torch.Generator) -> SearchState:
        """Return the state before the first iteration."""
        ...

    def sample(self, problem: Problem, state: SearchState, iteration: int, generator: torch.Generator) -> Tensor:
        """Return candidates (B, N, H, A); the loop clips them to the bounds."""
        ...

    def update(self, problem: Problem, state: SearchState, actions_BNHA: Tensor, costs_BN: Tensor) -> SearchState:
        """Return the next state; costs are finite or infinite, never NaN."""
        ...

    def answer(self, problem: Problem, state: SearchState) -> Tensor:
        """Return the actions to execute, (B, H, A)."""
        ...


def first_state(mean_BHA: Tensor, std_BHA: Tensor, memory: Any = None) -> SearchState:
    """Return a state with no best candidate yet: its cost is infinite and its actions are the mean."""
    cost_B = torch.full(mean_BHA.shape[:1], torch.inf, device=mean_BHA.device, dtype=mean_BHA.dtype)
    return SearchState(mean_BHA, std_BHA, mean_BHA, cost_B, memory)


def evaluate(problem: Problem, actions_BNHA: Tensor) -> tuple[Candidates, Tensor, Tensor]:
    """Predict and judge candidates: return them, their costs with NaN as infinity, and how many were not finite.

    Raises:
        ConfigError: the dynamics or the objective returned tensors of another shape.
    """
    states = problem.dynamics(problem.start, actions_BNHA)
    if states.shape[:3] != actions_BNHA.shape[:3]:
        raise ConfigError(
            f"the dynamics returned the shape {tuple(states.shape)} for actions {tuple(actions_BNHA.shape)}; "
            "it must return one state after each action, (B, N, H, ...)"
        )
    candidates = Candidates(problem.start, actions_BNHA, states, problem.step)
    costs = problem.objective(candidates)
    if costs.shape != actions_BNHA.shape[:2]:
        raise ConfigError(
            f"the objective returned the shape {tuple(costs.shape)}; it must return one cost a candidate, "
            f"(B, N) = {tuple(actions_BNHA.shape[:2])}"
        )
    finite = torch.isfinite(costs)
    return candidates, torch.where(finite, costs, torch.inf), (~finite).sum()


def pick(actions_BNHA: Tensor, index_B: Tensor) -> Tensor:
    """Return one candidate of each environment, (B, H, A)."""
    rows = torch.arange(actions_BNHA.shape[0], device=actions_BNHA.device)
    return actions_BNHA[rows, index_B]


def fit_warm(problem: Problem, warm_BHA: Tensor | None) -> Tensor | None:
    """Cut a first guess to the horizon, or continue it with the prior's mean; clip it to the bounds.

    Raises:
        ConfigError: it was made for another number of environments or another size of action.
    """
    if warm_BHA is None:
        return None
    num_environments, horizon, action_dim = problem.shape
    if warm_BHA.ndim != 3 or (warm_BHA.shape[0], warm_BHA.shape[2]) != (num_environments, action_dim):
        raise ConfigError(
            f"the warm start has the shape {tuple(warm_BHA.shape)}; it must be (B, any, A) = "
            f"({num_environments}, any, {action_dim})"
        )
    mean, _ = problem.prior()
    known = warm_BHA.shape[1]
    return problem.clip(torch.cat([warm_BHA[:, :horizon].to(mean), mean[:, min(known, horizon) :]], dim=1))


def search(
    rule: Rule,
    problem: Problem,
    generator: torch.Generator,
    *,
    warm_BHA: Tensor | None = None,
    deadline_s: float | None = None,
    clock: Clock = time.perf_counter,
) -> Plan:
    """Run a rule on a problem until its iterations or the time are spent.

    Raises:
        ConfigError: the warm start, the dynamics or the objective have shapes that do not fit the problem.
    """
    began = clock()
    mean, std = problem.prior()
    warm = fit_warm(problem, warm_BHA)
    state = rule.begin(problem, mean if warm is None else warm, std, generator)
    records: list[Iteration] = []
    population, timed_out = None, False
    for iteration in range(rule.num_iterations):
        state, population, rejected = _iterate(rule, problem, state, iteration, generator)
        elapsed = clock() - began
        records.append(_record(rule, state, population, rejected, elapsed))
        # An iteration is started only if one of the mean length so far still fits.
        if deadline_s is not None and elapsed * (iteration + 2) / (iteration + 1) > deadline_s:
            timed_out = iteration + 1 < rule.num_iterations
            break
    return Plan(
        actions_BHA=problem.clip(rule.answer(problem, state)),
        best_BHA=state.best_BHA,
        cost_B=state.cost_B,
        mean_BHA=state.mean_BHA,
        std_BHA=state.std_BHA,
        iterations=tuple(records),
        seconds=clock() - began,
        timed_out=timed_out,
        population=population,
    )


def _iterate(
    rule: Rule, problem: Problem, state: SearchState, iteration: int, generator: torch.Generator
) -> tuple[SearchState, Population, Tensor]:
    with torch.set_grad_enabled(rule.needs_gradient):
        actions = problem.clip(rule.sample(problem, state, iteration, generator))
        if rule.needs_gradient:
            actions = actions.detach().requires_grad_(True)
        candidates, costs, rejected = evaluate(problem, actions)
    chosen_B = costs.detach().argmin(dim=1)
    lowest_B = costs.detach().gather(1, chosen_B[:, None])[:, 0].to(state.cost_B)
    better_B = lowest_B < state.cost_B
    best = torch.where(better_B[:, None, None], pick(actions.detach(), chosen_B), state.best_BHA)
    state = replace(state, best_BHA=best, cost_B=torch.where(better_B, lowest_B, state.cost_B))
    updated = rule.update(problem, state, actions, costs)
    seen = replace(candidates, actions_BNHA=actions.detach(), states_BNHS=candidates.states_BNHS.detach())
    return updated, Population(seen, costs.detach(), chosen_B), rejected


def _record(rule: Rule, state: SearchState, population: Population, rejected: Tensor, seconds: float) -> Iteration:
    costs = population.costs_BN
    finite = torch.isfinite(costs)
    mean_B = torch.where(finite, costs, 0.0).sum(dim=1) / finite.sum(dim=1)
    elite_B = costs.topk(min(rule.num_averaged, costs.shape[1]), dim=1, largest=False).values.mean(dim=1)
    return Iteration(
        best_B=costs.amin(dim=1).cpu(),
        mean_B=mean_B.cpu(),
        elite_B=elite_B.cpu(),
        spread_B=state.std_BHA.mean(dim=(1, 2)).cpu(),
        num_rejected=int(rejected),
        seconds=seconds,
    )
