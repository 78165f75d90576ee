"""Objective, constraints and ends in one cost for the planners, and what was rejected on the way.

Legend: B environments, N candidates, H steps of the horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forethought.control.objectives.constraints import Constraint, judge
from forethought.control.objectives.foreseen import freeze
from forethought.control.objectives.functions import StepFunction
from forethought.control.objectives.objective import Objective
from forethought.core.errors import ConfigError
from forethought.plan import Candidates

# So far above any cost of a usable candidate that violations are always counted first.
_FAR = 1e9


@dataclass(frozen=True)
class Verdict:
    """Costs (B, N), the candidates that a hard constraint rejected, and where it rejected all of them."""

    costs_BN: Tensor
    rejected_BN: Tensor
    all_rejected_B: Tensor


class Judge:
    """The cost that planners see: termination-aware objective, soft penalties, hard constraints.

    A rejected candidate costs infinitely much; where all of an environment's candidates are rejected, they are ordered
    by the number of violations, then by cost.

    Raises:
        ConfigError: the objective is no Objective, or `ended` is no function.
    """

    def __init__(
        self,
        objective: Objective,
        constraints: Sequence[Constraint] = (),
        ended: Callable[..., Any] | None = None,
    ) -> None:
        if not isinstance(objective, Objective):
            raise ConfigError(
                f"the objective is a {type(objective).__name__}; give Objective(function) or a sum of them"
            )
        if ended is not None and not callable(ended):
            raise ConfigError(f"`ended` is a {type(ended).__name__}; give a function (observation) -> bool, or None")
        self.objective, self.constraints = objective, tuple(constraints)
        self.ended = None if ended is None else StepFunction(ended, what="the end of the episode")

    def __call__(self, candidates: Candidates) -> Tensor:
        """Return costs (B, N) for a planner."""
        return self.verdict(candidates).costs_BN

    def verdict(self, candidates: Candidates) -> Verdict:
        """Return costs with what was rejected.

        Raises:
            ObjectiveError: a function raises or returns the wrong shape.
        """
        frozen, alive_BNH = freeze(candidates, self.ended)
        scores_BN = self.objective.scores(frozen, frozen=alive_BNH)
        penalties_BN, violations_BN = judge(self.constraints, frozen, alive_BNH)
        costs_BN = penalties_BN - scores_BN
        # An infinite score is no bargain, and neither is an action that is no number: nothing but finite may win.
        usable_BN = costs_BN.isfinite() & candidates.actions_BNHA.isfinite().flatten(2).all(2)
        costs_BN = torch.where(usable_BN, costs_BN, torch.inf)
        rejected_BN = violations_BN > 0
        all_rejected_B = rejected_BN.all(1)
        infinite_BN = torch.full_like(costs_BN, torch.inf)
        hard_BN = torch.where(rejected_BN, infinite_BN, costs_BN)
        # In [0, 1): which of two candidates with as many violations costs less.
        order_BN = costs_BN.argsort(1).argsort(1).to(costs_BN) / costs_BN.shape[1]
        # The sum is taken before it is made far: behind 1e9 an order of less than 1 would be rounded away.
        least_BN = torch.where(costs_BN.isfinite(), _FAR * (violations_BN + order_BN), infinite_BN)
        return Verdict(torch.where(all_rejected_B[:, None], least_BN, hard_BN), rejected_BN, all_rejected_B)
