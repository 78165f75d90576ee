"""One simulation: the shipped engine and scheduler over a simulated target and draft."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from forethought.decode.batching.budget import SchedulerConfig
from forethought.decode.batching.pages import PageManager
from forethought.decode.batching.scheduler import Scheduler
from forethought.decode.engine import Engine, Round
from forethought.decode.law.sampling import SamplingParams
from forethought.decode.planning.model_of_speed import CostCurves, Plan
from forethought.decode.planning.planner import Planner, PlannerConfig
from forethought.decode.simulate.behaviour import BEYOND, Behaviour, Draws, Fate
from forethought.decode.simulate.clock import VirtualClock
from forethought.decode.simulate.source import MAX_LENGTH, SimulatedSource
from forethought.decode.simulate.verifier import SimulatedVerifier

PAGE_SIZE = 256


@dataclass(frozen=True)
class Simulated:
    """What a simulation brought, over its rounds with a full batch and no prompt in them.

    `hit_rate` is the share of verdicts that were foreseen, `sources` counts drafts by where they came from, and
    `report` is the planner's, where one planned.
    """

    tokens: int
    seconds: float
    rounds: list[Round]
    sources: dict[str, int]
    hit_rate: float | None = None
    report: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of virtual time, of the whole batch."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_round(self) -> float:
        """Tokens a round and sequence."""
        judged = sum(len(happened.verdicts) for happened in self.rounds)
        return self.tokens / judged if judged else 0.0

    def after(self, num_rounds: int) -> float:
        """Return tokens a second without the first rounds."""
        later = self.rounds[num_rounds:]
        seconds = sum(happened.total for happened in later)
        return sum(happened.emitted for happened in later) / seconds if seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the figures from which the speed can be told, as plain JSON values."""
        totals = [happened.total for happened in self.rounds]
        verify = sum(happened.verify for happened in self.rounds)
        stall = sum(happened.stall for happened in self.rounds)
        return {
            "tokens_per_second": self.tokens_per_second,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "rounds": len(self.rounds),
            "tokens_per_round": self.tokens_per_round,
            "verify_share": verify / self.seconds if self.seconds else None,
            "stall_share": stall / self.seconds if self.seconds else None,
            "round_p50": float(np.quantile(totals, 0.5)) if totals else None,
            "round_p99": float(np.quantile(totals, 0.99)) if totals else None,
            "hit_rate": self.hit_rate,
            "sources": self.sources,
        }


class _Steering:
    """Keeps the rounds that count and lets the planner see all of them."""

    def __init__(self, batch_size: int, planner: Planner | None) -> None:
        self.rounds: list[Round] = []
        self._batch_size, self._planner = batch_size, planner

    def observe(self, happened: Round) -> None:
        no_prompt = happened.num_rows == sum(drafted + 1 for _, drafted, _ in happened.verdicts)
        if no_prompt and happened.num_decoding == self._batch_size:
            self.rounds.append(happened)
        if self._planner is not None:
            self._planner.observe(happened)


def simulate(
    costs: CostCurves,
    behaviour: Behaviour,
    policy: Plan | PlannerConfig,
    *,
    batch_size: int = 1,
    num_requests: int = 4,
    prompt_tokens: int = 128,
    output_tokens: int = 512,
    seed: int = 0,
    draws: Draws = "independent",
    jitter: float = 0.0,
) -> Simulated:
    """Decode simulated requests by a fixed plan, or as a planner plans, and return what came of it.

    The rounds that count have no prompt and `batch_size` sequences. "stratified" draws spread accepted lengths and
    ranks evenly over their laws instead of drawing each by itself: means converge as 1 / rounds.

    Raises:
        InputError: requests do not fit, or a number is out of range.
    """
    clock = VirtualClock()
    planner = None if isinstance(policy, Plan) else Planner(policy, costs)
    plan = policy if isinstance(policy, Plan) else Plan() if planner is None else planner.plan
    fates: dict[int, Fate] = {}
    source = SimulatedSource(costs, fates, clock, plan, observer=planner)
    if planner is not None:
        planner.on_change = lambda new: setattr(source, "plan", new)
    steering = _Steering(batch_size, planner)
    engine = _engine(
        costs, fates, clock, source, steering, batch_size, prompt_tokens + output_tokens, jitter=jitter, seed=seed
    )
    params = SamplingParams(max_tokens=output_tokens, ignore_eos=True)
    for _ in range(num_requests):
        request_id = engine.add([0] * prompt_tokens, params)
        fates[request_id] = Fate(behaviour, seed, request_id, draws)
    while engine.has_work:
        engine.step()
    counts = source.foreseen
    sources = Counter(name for happened in steering.rounds for name, _, _ in happened.verdicts)
    return Simulated(
        tokens=sum(happened.emitted for happened in steering.rounds),
        seconds=sum(happened.total for happened in steering.rounds),
        rounds=steering.rounds,
        sources=dict(sources),
        hit_rate=counts.hit_rate if counts.hits + counts.misses else None,
        report={} if planner is None else planner.report(),
    )


def _engine(
    costs: CostCurves,
    fates: dict[int, Fate],
    clock: VirtualClock,
    source: SimulatedSource,
    steering: _Steering,
    batch_size: int,
    max_length: int,
    *,
    jitter: float,
    seed: int,
) -> Engine:
    pages = PageManager(-(-(max_length + MAX_LENGTH) // PAGE_SIZE) * batch_size, PAGE_SIZE, prefix_cache=False)
    settings = SchedulerConfig(
        max_model_len=max_length,
        max_num_seqs=batch_size,
        max_num_batched_tokens=max(batch_size * (MAX_LENGTH + 1), max_length),
        num_speculative_tokens=MAX_LENGTH,
        enable_prefix_caching=False,
    )
    return Engine(
        verifier=SimulatedVerifier(
            costs.target,
            fates,
            clock,
            jitter=jitter,
            seed=seed,
            slowed=lambda: costs.contention if source.plan.method == "ssd" else 1.0,
        ),
        scheduler=Scheduler(settings, pages),
        source=source,
        max_length=max_length,
        vocabulary_size=BEYOND + 1,
        clock=clock,
        steering=steering,
    )
