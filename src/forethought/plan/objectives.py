"""Objectives made of a cost a step: at the end, at the best moment, or over the whole horizon.

With a cost at the end only and partial execution, a planner always aims to arrive exactly H steps from now and never
hurries: it procrastinates. Costs by minimum or sum do not, and neither does a horizon that shrinks (`Controller`).

Legend: B environments, N candidates, H horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from forethought.core.errors import ConfigError, unknown_name
from forethought.plan.problem import Candidates, Objective

StepCost = Callable[[Candidates], Tensor]
Over = Literal["terminal", "min", "sum"]


def over_horizon(step_cost: StepCost, over: Over = "terminal", *, mean_weight: float = 0.0) -> Objective:
    """Make an objective of a function that gives the cost after each step, (B, N, H).

    "terminal" takes the last step's, "min" the smallest, "sum" adds them. `mean_weight` times the mean over the horizon
    is added, which breaks the ties of "min" in favour of arriving early (1e-3 is enough).

    Raises:
        ConfigError: `over` is none of the three, or `step_cost` does not return one cost a step.
    """
    if over not in get_args(Over):
        raise unknown_name("way to reduce a cost over the horizon", over, get_args(Over))

    def objective(candidates: Candidates) -> Tensor:
        costs_BNH = step_cost(candidates)
        if costs_BNH.shape != candidates.actions_BNHA.shape[:3]:
            wanted = tuple(candidates.actions_BNHA.shape[:3])
            raise ConfigError(
                f"the step cost returned the shape {tuple(costs_BNH.shape)}; it must return (B, N, H) = {wanted}"
            )
        reduced = {"terminal": _last, "min": _smallest, "sum": _total}[over](costs_BNH)
        return reduced + mean_weight * costs_BNH.mean(dim=2) if mean_weight else reduced

    return objective


def _last(costs_BNH: Tensor) -> Tensor:
    return costs_BNH[:, :, -1]


def _smallest(costs_BNH: Tensor) -> Tensor:
    return costs_BNH.amin(dim=2)


def _total(costs_BNH: Tensor) -> Tensor:
    return costs_BNH.sum(dim=2)


def goal_distance(goal_BS: Tensor) -> StepCost:
    """Return the squared distance of every predicted state to a goal, summed over the state: (B, N, H).

    goal_BS is (B, ...) or (1, ...), with the axes of one state. Source: the cost of arXiv 2603.19312, section 3.
    """

    def step_cost(candidates: Candidates) -> Tensor:
        states = candidates.states_BNHS
        difference = states - goal_BS.to(states)[:, None, None]
        return difference.square().flatten(start_dim=3).sum(dim=3)

    return step_cost


def action_cost(weight: float = 1.0) -> StepCost:
    """Return the squared size of every action times a weight: (B, N, H)."""

    def step_cost(candidates: Candidates) -> Tensor:
        return weight * candidates.actions_BNHA.square().sum(dim=3)

    return step_cost


def from_score(score: Callable[[Candidates], Tensor]) -> Objective:
    """Make an objective of a score (B, N) where higher is better."""

    def objective(candidates: Candidates) -> Tensor:
        return -score(candidates)

    return objective


def weighted_sum(terms: Sequence[tuple[float, Objective]]) -> Objective:
    """Add objectives with weights.

    Raises:
        ConfigError: there is no term.
    """
    if not terms:
        raise ConfigError("a weighted sum of no objectives was asked for; give at least one (weight, objective)")

    def objective(candidates: Candidates) -> Tensor:
        return torch.stack([weight * term(candidates) for weight, term in terms]).sum(dim=0)

    return objective
