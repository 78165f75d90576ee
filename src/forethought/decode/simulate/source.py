"""The draft side in a simulation: the shipped cache and fan-out, with drafts that cost time and hold no text.

Its clock hand runs beside the target's: preparing begins when an answer has left and goes on pass by pass; a verdict
that comes before the tree is complete is heard after the pass under way and answered with the depth that is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from forethought.decode.draft import NO_DRAFT, Draft, Judged, Source
from forethought.decode.drafter.foresight import Foresight
from forethought.decode.planning.curves import Curve
from forethought.decode.planning.model_of_speed import CostCurves, Plan
from forethought.decode.request import Request
from forethought.decode.simulate.behaviour import Fate
from forethought.decode.simulate.clock import VirtualClock
from forethought.decode.sources.links import Observer
from forethought.decode.sources.shadow import LENGTH, Shadow
from forethought.lookahead import CacheStatistics, OutcomeCache

Outcome = tuple[int, int]
MAX_LENGTH, MAX_BUDGET = 32, 256
_DRAFTED = 0


class SimulatedSource:
    """A `DraftSource` on a virtual clock that drafts by `plan`, which may be set anew at any time.

    `observer` learns the ranks of bonus tokens and what prompt lookup would have proposed, as it does of a real draft.
    """

    def __init__(
        self,
        costs: CostCurves,
        fates: Mapping[int, Fate],
        clock: VirtualClock,
        plan: Plan,
        *,
        capacity: int = 1 << 16,
        observer: Observer | None = None,
    ) -> None:
        self.plan = plan
        self._costs, self._fates, self._clock, self._observer = costs, fates, clock, observer
        self._foresight = Foresight(plan.fan_out, MAX_BUDGET, MAX_LENGTH)
        self._cache: OutcomeCache[Outcome, int] = OutcomeCache(capacity, group_of=_accepted_length)
        self._answers: dict[int, int | None] = {}
        self._asked: set[int] = set()
        # When the passes of the preparation under way end: the glue pass, then one a depth.
        self._passes: list[float] = []
        self._verdict_at = 0.0
        # The first verdict of a step is passed on before the host's work, the others with it.
        self._host_time: Literal["none", "owed", "spent"] = "none"

    @property
    def foreseen(self) -> CacheStatistics:
        """The counts of the cache of outcomes."""
        return self._cache.statistics

    def start(self, request: Request) -> None:
        """Follow a request from its present text on."""
        self.stop(request)
        if self._host_time == "spent":
            self._host_time = "none"

    def stop(self, request: Request) -> None:
        """Forget a request."""
        self._cache.forget(request.id)
        self._answers.pop(request.id, None)
        self._asked.discard(request.id)

    def close(self) -> None:
        """Hold nothing that needs giving back."""

    def collect(self, requests: Sequence[Request]) -> Mapping[int, Draft]:
        """Return the drafts of a round, having let the time go by that the target waits for them."""
        self._host_time = "owed"
        plan = self.plan
        if plan.method == "ssd":
            return self._foreseen(requests, plan)
        self._answers.clear()
        self._asked.clear()
        if plan.method == "ngram":
            self._clock.advance_to(self._verdict_at + len(requests) * self._costs.ngram)
            return {request.id: self._look_up(request, plan.num_speculative_tokens) for request in requests}
        if plan.method == "draft":
            passes = plan.num_speculative_tokens + self._costs.extra_forwards
            seconds = passes * self._draft_curve(len(requests), _context(requests))
            self._clock.advance_to(self._heard(self._verdict_at) + self._costs.draft_link + seconds)
            self._passes = []
            return {request.id: _drafted(plan.num_speculative_tokens, "draft") for request in requests}
        return {}

    def judged(self, request: Request, draft: Draft, verdict: Judged, kept: Sequence[int]) -> None:
        """Look a verdict up among those that were foreseen."""
        if self._host_time != "spent":
            self._verdict_at = self._clock()
        if self._host_time == "owed":
            self._host_time = "spent"
            self._clock.advance(self._costs.host)
        if self._observer is not None and self.plan.method in ("draft", "ssd"):
            self._cast_shadow(self._observer, request, draft, len(kept))
        if verdict.bonus is None or request.id not in self._asked:
            return
        self._asked.discard(request.id)
        self._answers[request.id] = self._cache.take(request.id, request.round, (verdict.accepted, verdict.bonus))
        self._foresight.observe(draft.source, verdict.accepted, len(draft.tokens), verdict.bonus)
        if self._observer is not None:
            self._observer.observe_rank(draft.source, len(draft.tokens), verdict.accepted, verdict.bonus)

    def _foreseen(self, requests: Sequence[Request], plan: Plan) -> dict[int, Draft]:
        heard = self._heard(self._verdict_at + self._costs.link / 2)
        depth = sum(end <= heard for end in self._passes[1:])
        prepared = {request.id: self._answers.pop(request.id, None) for request in requests}
        drafts = {
            request_id: _drafted(min(length, depth, plan.num_speculative_tokens), "cache")
            for request_id, length in prepared.items()
            if length is not None and depth > 0
        }
        missing = [request for request in requests if request.id not in drafts]
        left_at = heard + self._answer_misses(missing, plan, drafts)
        self._clock.advance_to(left_at + self._costs.link / 2)
        self._prepare(requests, drafts, plan, left_at)
        return drafts

    def _answer_misses(self, missing: Sequence[Request], plan: Plan, drafts: dict[int, Draft]) -> float:
        if not missing:
            return 0.0
        if plan.fallback == "draft" and plan.jit_length:
            drafts.update({request.id: _drafted(plan.jit_length, "draft") for request in missing})
            return plan.jit_length * self._draft_curve(len(missing), _context(missing))
        if plan.fallback == "ngram":
            drafts.update({request.id: self._look_up(request, plan.num_speculative_tokens) for request in missing})
            return len(missing) * self._costs.ngram
        drafts.update({request.id: NO_DRAFT for request in missing})
        return 0.0

    def _prepare(self, requests: Sequence[Request], drafts: Mapping[int, Draft], plan: Plan, begun: float) -> None:
        """Foresee verdicts on the drafts that have just left: one glue pass, then one pass a depth for all."""
        context, num_branches, num_rows = _context(requests), 0, 0
        for request in requests:
            # One more token always follows a draft, so a draft is cut where the request is about to end.
            draft = drafts[request.id].cut(request.remaining - 1)
            num_drafted = len(draft.tokens)
            fan_out = self._foresight.fan_out(draft.source, num_drafted, budget=plan.budget, kind=plan.fan_out)
            outcomes = {
                (accepted, rank): plan.num_speculative_tokens
                for accepted, width in enumerate(fan_out)
                for rank in range(width)
            }
            self._cache.prepare(request.id, request.round + 1, outcomes)
            self._asked.add(request.id)
            num_branches += len(outcomes)
            num_rows += num_drafted + 1
        glued = begun + self._draft_curve(num_rows, context)
        step = self._draft_curve(num_branches, context)
        self._passes = [glued + depth * step for depth in range(plan.num_speculative_tokens + 1)]

    def _heard(self, arrival: float) -> float:
        """When a verdict is looked at: after the pass that is under way when it comes."""
        return next((end for end in self._passes if end > arrival), arrival) if self._passes else arrival

    def _cast_shadow(self, observer: Observer, request: Request, draft: Draft, num_kept: int) -> None:
        """Tell what prompt lookup would have proposed where the tokens just committed begin."""
        position = len(request.tokens) - len(request.prompt) - num_kept
        fate = self._fates[request.id]
        proposed = fate.ngram_length(position, LENGTH)
        matched, _ = fate.verdict("ngram", proposed, position, request.round - 1)
        observer.observe_shadow(Shadow(proposed, matched, draft.source != "cache"))

    def _look_up(self, request: Request, length: int) -> Draft:
        position = len(request.tokens) - len(request.prompt)
        found = self._fates[request.id].ngram_length(position, length)
        return _drafted(found, "ngram") if found else NO_DRAFT

    @property
    def _draft_curve(self) -> Curve:
        return self._costs.draft if self._costs.draft is not None else self._costs.target


def _drafted(length: int, source: Source) -> Draft:
    return Draft([_DRAFTED] * length, None, source)


def _context(requests: Sequence[Request]) -> float:
    return sum(len(request.tokens) for request in requests) / len(requests)


def _accepted_length(outcome: Outcome) -> int:
    return outcome[0]
