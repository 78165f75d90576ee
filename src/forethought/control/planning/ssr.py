"""SSR, the planner of D-MPC (arXiv 2410.05364): sample action sequences, score what they lead to, rank.

Sampling draws N sequences from the proposal; the dynamics predict each one's states in one batch; the problem's
objective scores them. Candidates stay what the proposal knows, which is the method's only conservatism. Beyond the
paper: means over the best, the last plan as one more candidate, a budget of time, and refinement by another planner.

Legend: B environments, N candidates, H steps of the horizon, A numbers an action.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from forethought.control.objectives.judge import Judge, Verdict
from forethought.control.planning.budget import Budget, Clock, Level, ladder
from forethought.control.planning.ranking import pick, rank
from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.plan import Candidates, Iteration, Plan, Planner, Population, Problem, Proposal


@config
class SSRConfig:
    """How SSR plans."""

    num_samples: int = Field(default=64, ge=1)
    """Candidates drawn from the proposal (N)."""
    ranking: Literal["best", "soft", "top_k"] = "best"
    """best: the candidate of the highest score; top_k: the mean of the best ones; soft: a mean weighted by score."""
    top_k: int = Field(default=4, ge=1)
    """Candidates that top_k averages."""
    temperature: float = Field(default=0.1, gt=0.0)
    """Of the soft ranking, in units of the mean distance from the best score."""
    warm_start: bool = False
    """Let the last plan, moved on by what was executed, compete as one more candidate. Off: its repeated last action is
    nothing the data holds; a value that errs there keeps choosing it (Hopper-v5, one short run: 202, not 1122)."""
    proposal_steps: int | None = Field(default=None, ge=1)
    """Denoising steps of the proposal; None: as the model was saved."""
    dynamics_steps: int | None = Field(default=None, ge=1)
    """Denoising steps of the dynamics; None: as the model was saved."""
    budget_ms: float | None = Field(default=None, gt=0.0)
    """Time for a plan: steps and candidates are lowered to keep it; None: never."""


class SSRPlanner:
    """Sample, score, rank: a `Planner` whose candidates come from a proposal.

    `proposal` draws (B, N, H, A) actions in real units; where proposal and dynamics offer `with_steps(n)` the planner
    sets their denoising steps. `refine` is another planner of `forethought.plan` that starts from SSR's answer.

    Raises:
        ConfigError: `proposal` cannot be called.
    """

    def __init__(
        self,
        proposal: Proposal,
        settings: SSRConfig | None = None,
        *,
        refine: Planner | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        if not callable(proposal):
            raise ConfigError(f"the proposal is a {type(proposal).__name__}; give (start, num, generator) -> actions")
        self.proposal, self.settings, self.refine = proposal, settings or SSRConfig(), refine
        self._clock = clock
        self.budget = self._make_budget(None)
        self.all_rejected = False

    @torch.no_grad()
    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator,
        *,
        warm_BHA: Tensor | None = None,
        deadline_s: float | None = None,
    ) -> Plan:
        """Return the plan; `timed_out` says that it took longer than its budget.

        Raises:
            ConfigError: the proposal returns actions, or the dynamics states, of the wrong shape.
            ObjectiveError: a user's function raises or returns the wrong shape.
        """
        began = self._clock()
        if not self.budget.num_plans and self.budget.levels[0].dynamics_steps is None:
            self.budget = self._make_budget(problem.dynamics)
        level = self.budget.choose(deadline_s)
        proposed = _stepped(self.proposal, level.proposal_steps)(problem.start, level.num_samples, generator)
        actions_BNHA = self._complete(problem, proposed, warm_BHA)
        dynamics = _stepped(problem.dynamics, level.dynamics_steps)
        states_BNHS = _checked(dynamics(problem.start, actions_BNHA), actions_BNHA)
        candidates = Candidates(problem.start, actions_BNHA, states_BNHS, problem.step)
        verdict = _judge(problem, candidates)
        self.all_rejected = bool(verdict.all_rejected_B.any())
        plan = self._conclude(problem, candidates, verdict, began)
        if self.refine is not None:
            plan = self._refined(problem, generator, plan, deadline_s, began)
        seconds = self._clock() - began
        return replace(plan, seconds=seconds, timed_out=self.budget.record(seconds, deadline_s))

    def _complete(self, problem: Problem, proposed: Tensor, warm_BHA: Tensor | None) -> Tensor:
        B, H, A = problem.shape
        if proposed.ndim != 4 or (proposed.shape[0], *proposed.shape[2:]) != (B, H, A):
            raise ConfigError(
                f"the proposal returned actions of shape {tuple(proposed.shape)}; the problem needs ({B}, N, {H}, {A})"
            )
        if warm_BHA is not None and self.settings.warm_start:
            proposed = torch.cat([proposed, continued(warm_BHA, H)[:, None].to(proposed)], dim=1)
        # Clipped before the dynamics see them: what is scored is what can be executed.
        return problem.clip(proposed)

    def _conclude(self, problem: Problem, candidates: Candidates, verdict: Verdict, began: float) -> Plan:
        settings, costs_BN, actions_BNHA = self.settings, verdict.costs_BN, candidates.actions_BNHA
        ranked = rank(settings.ranking, actions_BNHA, costs_BN, top_k=settings.top_k, temperature=settings.temperature)
        chosen_B = costs_BN.argmin(1)
        spread = actions_BNHA.std(1, correction=0)
        return Plan(
            actions_BHA=problem.clip(ranked),
            best_BHA=pick(actions_BNHA, chosen_B),
            cost_B=costs_BN.min(1).values,
            mean_BHA=actions_BNHA.mean(1),
            std_BHA=spread,
            iterations=(_iteration(costs_BN, spread, verdict, self._clock() - began),),
            population=Population(candidates, costs_BN, chosen_B),
        )

    def _refined(
        self, problem: Problem, generator: torch.Generator, plan: Plan, deadline_s: float | None, began: float
    ) -> Plan:
        limit = self.budget.seconds if deadline_s is None else deadline_s
        left = None if limit is None else limit - (self._clock() - began)
        if self.refine is None or (left is not None and left <= 0):
            return plan
        better = self.refine(problem, generator, warm_BHA=plan.actions_BHA, deadline_s=left)
        wins_B = better.cost_B < plan.cost_B
        return replace(
            plan,
            actions_BHA=torch.where(wins_B[:, None, None], better.best_BHA, plan.actions_BHA),
            best_BHA=torch.where(wins_B[:, None, None], better.best_BHA, plan.best_BHA),
            cost_B=torch.minimum(better.cost_B, plan.cost_B),
            iterations=plan.iterations + better.iterations,
        )

    def _make_budget(self, dynamics: object) -> Budget:
        settings = self.settings
        proposal_steps = settings.proposal_steps or getattr(self.proposal, "num_steps", None)
        dynamics_steps = settings.dynamics_steps or getattr(dynamics, "num_steps", None)
        seconds = None if settings.budget_ms is None else settings.budget_ms / 1e3
        return Budget(ladder(Level(settings.num_samples, proposal_steps, dynamics_steps)), seconds)


def shift(actions_BHA: Tensor, executed: int) -> Tensor:
    """Return a plan moved on by the executed actions, its last action repeated."""
    return continued(actions_BHA[:, min(executed, actions_BHA.shape[1] - 1) :], actions_BHA.shape[1])


def continued(actions_BHA: Tensor, horizon: int) -> Tensor:
    """Return actions cut or continued, by repeating the last one, to a horizon."""
    missing = horizon - actions_BHA.shape[1]
    if missing <= 0:
        return actions_BHA[:, :horizon]
    return torch.cat([actions_BHA, actions_BHA[:, -1:].expand(-1, missing, -1)], dim=1)


def _stepped(model: Any, steps: int | None) -> Any:
    return model if steps is None or not hasattr(model, "with_steps") else model.with_steps(steps)


def _checked(states: Tensor, actions_BNHA: Tensor) -> Tensor:
    if states.ndim != 4 or states.shape[:3] != actions_BNHA.shape[:3]:
        raise ConfigError(
            f"the dynamics returned states of shape {tuple(states.shape)} for actions of {tuple(actions_BNHA.shape)}; "
            "give one state after each action: (B, N, H, numbers)"
        )
    return states


def _judge(problem: Problem, candidates: Candidates) -> Verdict:
    if isinstance(problem.objective, Judge):
        return problem.objective.verdict(candidates)
    costs_BN = problem.objective(candidates)
    # minus infinity is no bargain: nothing that is not finite may win.
    costs_BN = torch.where(costs_BN.isfinite(), costs_BN, torch.inf)
    none = torch.zeros_like(costs_BN, dtype=torch.bool)
    return Verdict(costs_BN, none, none.any(1))


def _iteration(costs_BN: Tensor, spread: Tensor, verdict: Verdict, seconds: float) -> Iteration:
    finite_BN = costs_BN.isfinite()
    safe_BN = torch.where(finite_BN, costs_BN, 0.0)
    best_B = costs_BN.min(1).values.cpu()
    return Iteration(
        best_B=best_B,
        mean_B=(safe_BN.sum(1) / finite_BN.sum(1).clamp(min=1)).cpu(),
        elite_B=best_B,
        spread_B=spread.mean((1, 2)).cpu(),
        num_rejected=int((~finite_BN | verdict.rejected_BN).sum()),
        seconds=seconds,
    )
