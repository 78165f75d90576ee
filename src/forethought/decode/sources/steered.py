"""A source of drafts that follows a plan: prompt look-up, a draft model elsewhere, or nothing, as the planner says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forethought.decode.draft import Draft, Judged
from forethought.decode.planning.model_of_speed import Plan
from forethought.decode.request import Request
from forethought.decode.sources.ngram import NgramSource
from forethought.decode.sources.remote import RemoteSource
from forethought.decode.wire.protocol import MAX_TOKENS, Demand, Fallback, Spread

_FALLBACKS = {"draft": Fallback.DRAFT, "ngram": Fallback.NGRAM, "none": Fallback.NONE}
_SPREADS = {"uniform": Spread.UNIFORM, "geometric": Spread.GEOMETRIC, "empirical": Spread.EMPIRICAL}


class SteeredSource:
    """`remote` and prompt look-up under a plan that may change between any two steps.

    Both follow every request all the time, so that a change of the plan needs no text to be read again. `remote` is
    None where there is no draft model.
    """

    def __init__(self, plan: Plan, remote: RemoteSource | None, ngrams: NgramSource) -> None:
        self.remote, self._ngrams = remote, ngrams
        self.plan = plan
        self.follow(plan)

    @property
    def foresees(self) -> bool:
        """Whether verdicts are prepared for."""
        return self.plan.method == "ssd"

    def follow(self, plan: Plan) -> None:
        """Draft by this plan from the next verdict on."""
        self.plan = plan
        self._ngrams.num_speculative_tokens = max(plan.num_speculative_tokens, 1)
        if self.remote is not None:
            self.remote.demand = demand_of(plan)

    def start(self, request: Request) -> None:
        """Learn of a request."""
        self._ngrams.start(request)
        if self.remote is not None:
            self.remote.start(request)

    def collect(self, requests: Sequence[Request]) -> Mapping[int, Draft]:
        """Return the drafts that the plan's method has for these requests."""
        if self.plan.method == "ngram":
            return self._ngrams.collect(requests)
        if self.remote is None or self.plan.method == "none":
            return {}
        return self.remote.collect(requests)

    def judged(self, request: Request, draft: Draft, verdict: Judged, kept: Sequence[int]) -> None:
        """Pass a verdict on."""
        if self.remote is not None:
            self.remote.judged(request, draft, verdict, kept)
        self._ngrams.judged(request, draft, verdict, kept)

    def stop(self, request: Request) -> None:
        """Forget a request."""
        self._ngrams.stop(request)
        if self.remote is not None:
            self.remote.stop(request)

    def close(self) -> None:
        """Give the draft's process and memory back."""
        if self.remote is not None:
            self.remote.close()

    def statistics(self) -> dict[str, Any]:
        """Return the accounts of the draft model's side."""
        return {} if self.remote is None else self.remote.statistics()


def demand_of(plan: Plan) -> Demand:
    """Return what a plan asks of the draft model's side; nothing where it does not use it."""
    if plan.method not in ("draft", "ssd"):
        return Demand(0)
    wanted = plan.num_speculative_tokens
    if plan.method == "draft":
        return Demand(wanted, 0, Fallback.DRAFT, Spread.EMPIRICAL, wanted)
    fallback = _FALLBACKS[plan.fallback]
    return Demand(wanted, plan.budget, fallback, _SPREADS[plan.fan_out], plan.jit_length or MAX_TOKENS)
