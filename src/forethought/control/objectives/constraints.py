"""Constraints on what is foreseen: hard ones reject candidates, soft ones cost.

Legend: B environments, N candidates, H steps of the horizon.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forethought.control.objectives.foreseen import befores
from forethought.control.objectives.functions import StepFunction
from forethought.core.errors import ConfigError
from forethought.plan import Candidates


@dataclass(frozen=True)
class Constraint:
    """A bound on what may be foreseen, built with `Constraint.hard` or `Constraint.soft`."""

    name: str
    function: StepFunction
    limit: float
    weight: float | None

    @classmethod
    def hard(cls, allowed: Callable[..., Any], *, name: str = "") -> Constraint:
        """Reject every candidate with a step for which allowed(before, action, after) is false.

        Where all candidates are rejected the one with the fewest such steps is taken, and the plan says so.
        """
        label = name or getattr(allowed, "__name__", "constraint")
        return cls(label, StepFunction(allowed, what=f"constraint {label!r}"), 0.0, None)

    @classmethod
    def soft(cls, cost: Callable[..., Any], *, limit: float, weight: float, name: str = "") -> Constraint:
        """Take weight * (sum over the horizon of cost(before, action, after) above limit) from the score.

        Raises:
            ConfigError: the limit is not finite, or the weight is not positive.
        """
        if not math.isfinite(limit) or not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"limit {limit} must be finite and weight {weight} positive")
        label = name or getattr(cost, "__name__", "cost")
        return cls(label, StepFunction(cost, what=f"constraint {label!r}"), limit, weight)

    def violation(self, candidates: Candidates, alive_BNH: Tensor) -> Tensor:
        """Return (B, N): steps that break a hard constraint, or the cost above a soft one's limit."""
        rows = (befores(candidates), candidates.actions_BNHA, candidates.states_BNHS)
        values_BNH = self.function(*(part.flatten(0, 2) for part in rows)).reshape(alive_BNH.shape)
        if self.weight is None:
            # NaN is neither allowed nor forbidden; a robot must not bet on it.
            return ((values_BNH == 0) | values_BNH.isnan()).float().sum(2)
        total_BN = torch.where(alive_BNH > 0, values_BNH, 0.0).sum(2)
        return (total_BN - self.limit).clamp(min=0.0).nan_to_num(nan=math.inf)


def judge(constraints: Sequence[Constraint], candidates: Candidates, alive_BNH: Tensor) -> tuple[Tensor, Tensor]:
    """Return the soft penalties and the number of hard violations, both (B, N).

    Raises:
        ObjectiveError: a constraint's function raises or returns the wrong shape.
    """
    penalties_BN = torch.zeros(alive_BNH.shape[:2], device=alive_BNH.device)
    violations_BN = torch.zeros_like(penalties_BN)
    for constraint in constraints:
        broken_BN = constraint.violation(candidates, alive_BNH)
        if constraint.weight is None:
            violations_BN = violations_BN + broken_BN
        else:
            penalties_BN = penalties_BN + constraint.weight * broken_BN
    return penalties_BN, violations_BN
