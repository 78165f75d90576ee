"""The target in a simulation: takes the time that its curve says and judges drafts by the behaviour of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from forethought.core.rng import generator
from forethought.decode.draft import NO_DRAFT, Draft, Judged
from forethought.decode.planning.curves import Curve
from forethought.decode.request import Request, Work
from forethought.decode.simulate.behaviour import Fate
from forethought.decode.simulate.clock import VirtualClock


class SimulatedVerifier:
    """A `Verifier` on a virtual clock; `jitter` is the spread of the logarithm of a pass's time.

    `slowed` says by how much passes are slowed down now.
    """

    def __init__(
        self,
        curve: Curve,
        fates: Mapping[int, Fate],
        clock: VirtualClock,
        *,
        jitter: float,
        seed: int,
        slowed: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._curve, self._fates, self._clock, self._slowed = curve, fates, clock, slowed
        self._noise = jitter
        self._random = generator(seed, "simulate.jitter")

    def run(self, works: Sequence[Work], drafts: Mapping[int, Draft]) -> list[Judged]:
        """Let the time of one pass over all rows go by and return the verdicts."""
        num_rows = sum(len(work.tokens) for work in works)
        context = sum(work.start for work in works) / len(works)
        scale = float(self._random.lognormal(0.0, self._noise)) if self._noise else 1.0
        self._clock.advance(scale * self._slowed() * self._curve(num_rows, context))
        return [self._judge(work, drafts.get(work.request.id, NO_DRAFT)) for work in works]

    def constrain(self, request_id: int, constraint: object) -> None:
        """Take no notice: simulated tokens have no text that a form could hold."""

    def forget(self, request: Request) -> None:
        """Keep nothing about requests, so there is nothing to drop."""

    def _judge(self, work: Work, draft: Draft) -> Judged:
        if not work.decides:
            return Judged()
        request = work.request
        position = len(request.tokens) - len(request.prompt)
        accepted, bonus = self._fates[request.id].verdict(draft.source, work.num_draft, position, request.round)
        return Judged(accepted, bonus)
