"""Sample, score, rank: draw whole plans from a proposal, predict them, and take the best (arXiv 2410.05364).

Legend: B environments, N candidates, H horizon, A action.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.core.errors import ConfigError
from forethought.plan.problem import Iteration, Plan, Population, Problem, Proposal
from forethought.plan.search import evaluate, fit_warm, pick


@dataclass(frozen=True)
class SampleScoreRank:
    """A planner that never refines: N proposals, one prediction, the lowest cost wins (the first among equals).

    proposal: draws the candidates; the bounds clip them before the dynamics see them.
    num_candidates: N. top_k: the actions of the k best are averaged (1, the paper's, takes the best).
    keep_warm: the warm start joins as one more candidate, which keeps a plan from dithering between equals.
    chunk: candidates predicted at a time, where memory is short; None for all at once.

    The deadline is honoured between chunks: what was not reached by then has an infinite cost.

    Raises:
        ConfigError: a count is not positive.
    """

    proposal: Proposal
    num_candidates: int = 64
    top_k: int = 1
    keep_warm: bool = True
    chunk: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_candidates or (self.chunk is not None and self.chunk < 1):
            raise ConfigError(
                f"num_candidates is {self.num_candidates}, top_k {self.top_k} and chunk {self.chunk}; all are at "
                "least 1 and top_k at most num_candidates"
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
            ConfigError: the proposal, the dynamics or the objective return shapes that do not fit the problem.
        """
        began = time.perf_counter()
        warm = fit_warm(problem, warm_BHA) if self.keep_warm else None
        actions = self._propose(problem, generator)
        # The warm start goes first so that a deadline cannot leave it out; it is chosen only if it costs less.
        if warm is not None:
            actions = torch.cat([warm[:, None].to(actions), actions], dim=1)
        population, rejected, timed_out = self._judge(problem, actions, began, deadline_s)
        costs = population.costs_BN
        top_k = min(self.top_k, actions.shape[1])
        values, index = costs.topk(top_k, dim=1, largest=False)
        best = pick(actions, population.chosen_B)
        chosen = best if top_k == 1 else _average(actions, values, index, best)
        seconds = time.perf_counter() - began
        cost_B = costs.gather(1, population.chosen_B[:, None])[:, 0]
        finite = torch.isfinite(costs)
        std = actions.std(dim=1, correction=0)
        record = Iteration(
            best_B=cost_B.cpu(),
            mean_B=(torch.where(finite, costs, 0.0).sum(dim=1) / finite.sum(dim=1)).cpu(),
            elite_B=values.mean(dim=1).cpu(),
            spread_B=std.mean(dim=(1, 2)).cpu(),
            num_rejected=rejected,
            seconds=seconds,
        )
        return Plan(chosen, best, cost_B, chosen, std, (record,), seconds, timed_out, population)

    @torch.no_grad()
    def _propose(self, problem: Problem, generator: torch.Generator) -> Tensor:
        actions = self.proposal(problem.start, self.num_candidates, generator)
        wanted = (problem.num_environments, self.num_candidates, problem.horizon, problem.action_dim)
        if tuple(actions.shape) != wanted:
            raise ConfigError(
                f"the proposal returned the shape {tuple(actions.shape)}; it must return (B, N, H, A) = {wanted}"
            )
        return problem.clip(actions)

    @torch.no_grad()
    def _judge(
        self, problem: Problem, actions: Tensor, began: float, deadline_s: float | None
    ) -> tuple[Population, int, bool]:
        size = self.chunk or actions.shape[1]
        parts = []
        for begin in range(0, actions.shape[1], size):
            late = deadline_s is not None and time.perf_counter() - began > deadline_s
            if parts and late:
                break
            parts.append(evaluate(problem, actions[:, begin : begin + size]))
        seen = sum(part[1].shape[1] for part in parts)
        candidates = parts[0][0]
        if len(parts) > 1:
            states = torch.cat([part[0].states_BNHS for part in parts], dim=1)
            candidates = type(candidates)(problem.start, actions[:, :seen], states, problem.step)
        costs = torch.cat([part[1] for part in parts], dim=1)
        rejected = sum(int(part[2]) for part in parts)
        return Population(candidates, costs, costs.argmin(dim=1)), rejected, seen < actions.shape[1]


def _average(actions: Tensor, values_BK: Tensor, index_BK: Tensor, best_BHA: Tensor) -> Tensor:
    """Return the mean of the best candidates among those with a finite cost; the best where there is none."""
    chosen = torch.gather(actions, 1, index_BK[:, :, None, None].expand(-1, -1, *actions.shape[2:]))
    weights = torch.isfinite(values_BK)[:, :, None, None].to(actions)
    count = weights.sum(dim=1)
    return torch.where(count > 0, (chosen * weights).sum(dim=1) / count.clamp(min=1.0), best_BHA)
