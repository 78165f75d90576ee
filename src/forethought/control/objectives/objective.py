"""Objectives as plain Python: what the robot should do, said at run time, with weights, and never a gradient.

An Objective is an immutable sum of terms. It scores candidates (higher is better); called as the planners' cost it
turns the sign. Nothing here holds a parameter of a model except the learned value, which is only read.

Legend: B environments, N candidates, H steps of the horizon, O numbers an observation, A numbers an action.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from forethought.control.objectives.foreseen import befores, foresee, freeze
from forethought.control.objectives.functions import PlanFunction, StepFunction, as_scores
from forethought.core.errors import ConfigError
from forethought.plan import Candidates

Scorer = Callable[[Candidates, Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """One summand: a name, its scores (candidates, alive_BNH) -> (B, N), its weight, and whether it is standardised."""

    name: str
    scorer: Scorer
    weight: float = 1.0
    normalised: bool = False

    def __call__(self, candidates: Candidates, alive_BNH: Tensor) -> Tensor:
        """Return the weighted scores, (B, N)."""
        scores_BN = self.scorer(candidates, alive_BNH)
        return self.weight * (_standardise(scores_BN) if self.normalised else scores_BN)


class Objective:
    """What to make large: a function of one step summed over the horizon, one of the whole plan, or a weighted sum.

    `Objective(lambda before, action, after: ...)` is short for `Objective.of_step`. Objectives add, subtract and scale:
    `1.0 * height + 0.1 * Objective.learned(value)`. Functions see real units and need no gradient.

    Raises:
        ConfigError: the function cannot be called, or a weight is not finite.
    """

    def __init__(self, step: Callable[..., Any] | None = None, *, terms: tuple[Term, ...] = ()) -> None:
        if step is not None:
            terms = (*Objective.of_step(step).terms, *terms)
        if not terms:
            raise ConfigError(
                "an objective needs something to score; give a function (before, action, after) -> number"
            )
        self.terms = terms

    @classmethod
    def of_step(cls, function: Callable[..., Any], *, discount: float = 1.0, name: str = "") -> Objective:
        """Return the discounted sum over the horizon of function(before, action, after), NumPy or torch.

        Steps after a predicted end of the episode count nothing.

        Raises:
            ConfigError: the function cannot be called, or the discount lies outside (0, 1].
        """
        label = _label(function, name)
        if not 0.0 < discount <= 1.0:
            raise ConfigError(f"discount {discount} must lie in (0, 1]")
        call = StepFunction(function, what=f"objective {label!r}")

        def score(candidates: Candidates, alive_BNH: Tensor) -> Tensor:
            states_BNHO = candidates.states_BNHS
            rows = (befores(candidates), candidates.actions_BNHA, states_BNHO)
            rewards_BNH = call(*(part.flatten(0, 2) for part in rows)).reshape(alive_BNH.shape)
            weights_H = discount ** torch.arange(alive_BNH.shape[2], device=alive_BNH.device)
            # where, not times: after the end a function may return anything, NaN too.
            return torch.where(alive_BNH > 0, rewards_BNH * weights_H, 0.0).sum(2)

        return cls(terms=(Term(label, score),))

    @classmethod
    def of_plan(cls, function: Callable[[Any], Any], *, name: str = "") -> Objective:
        """Return the objective function(Foreseen) -> N scores, NumPy or torch.

        Raises:
            ConfigError: the function cannot be called.
        """
        label = _label(function, name)
        call = PlanFunction(function, what=f"objective {label!r}")

        def score(candidates: Candidates, alive_BNH: Tensor) -> Tensor:
            return torch.stack([call(foresee(candidates, alive_BNH, index)) for index in range(len(alive_BNH))])

        return cls(terms=(Term(label, score),))

    @classmethod
    def learned(cls, value: Callable[[Candidates], Tensor], *, name: str = "learned value") -> Objective:
        """Return the objective of a value model: (candidates) -> predicted return-to-go, (B, N)."""

        def score(candidates: Candidates, alive_BNH: Tensor) -> Tensor:
            with torch.no_grad():
                return as_scores(value(candidates), tuple(alive_BNH.shape[:2]), alive_BNH, what=name)

        return cls(terms=(Term(name, score),))

    def normalised(self) -> Objective:
        """Return the objective with each term standardised over the candidates of each plan, so that scales compare."""
        return Objective(terms=tuple(replace(term, normalised=True) for term in self.terms))

    def scores(
        self, candidates: Candidates, ended: Callable[..., Any] | None = None, *, frozen: Tensor | None = None
    ) -> Tensor:
        """Return the scores (B, N), higher is better; NaN becomes minus infinity.

        Raises:
            ObjectiveError: a function raises or returns the wrong shape.
        """
        alive_BNH = frozen
        if alive_BNH is None:
            candidates, alive_BNH = freeze(candidates, ended)
        total = torch.stack([term(candidates, alive_BNH) for term in self.terms]).sum(0)
        return total.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)

    def __call__(self, candidates: Candidates) -> Tensor:
        """Return costs (B, N) for the planners of `forethought.plan`: the scores with the sign turned."""
        return -self.scores(candidates)

    def __add__(self, other: Objective) -> Objective:
        """Return the sum of two objectives."""
        return Objective(terms=self.terms + other.terms) if isinstance(other, Objective) else NotImplemented

    def __sub__(self, other: Objective) -> Objective:
        """Return the difference of two objectives."""
        return self + (-1.0) * other

    def __mul__(self, weight: float) -> Objective:
        """Return the objective with every term's weight multiplied."""
        weight = float(weight)
        if not math.isfinite(weight):
            raise ConfigError(f"the weight {weight} of an objective must be finite")
        return Objective(terms=tuple(replace(term, weight=term.weight * weight) for term in self.terms))

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        """Return the objective with its sign turned."""
        return -1.0 * self

    def __repr__(self) -> str:
        """Show the terms with their weights."""
        return " + ".join(f"{term.weight:g} {term.name}{'~' if term.normalised else ''}" for term in self.terms)


def _label(function: object, name: str) -> str:
    if not callable(function):
        raise ConfigError(f"an objective is a function; given {type(function).__name__}")
    return name or getattr(function, "__name__", type(function).__name__)


def _standardise(scores_BN: Tensor) -> Tensor:
    finite_BN = scores_BN.isfinite()
    count_B1 = finite_BN.sum(1, keepdim=True).clamp(min=1)
    safe_BN = scores_BN.where(finite_BN, torch.zeros_like(scores_BN))
    mean_B1 = safe_BN.sum(1, keepdim=True) / count_B1
    spread_BN = (safe_BN - mean_B1).where(finite_BN, torch.zeros_like(scores_BN))
    std_B1 = (spread_BN.square().sum(1, keepdim=True) / count_B1).sqrt()
    # Candidates that a term cannot tell apart differ by rounding alone, which must not be blown up to one.
    usable = std_B1 > 1e-6 * (1.0 + mean_B1.abs())
    standard_BN = torch.where(usable, spread_BN / std_B1.clamp(min=1e-12), torch.zeros_like(spread_BN))
    return standard_BN.where(finite_BN, scores_BN)
