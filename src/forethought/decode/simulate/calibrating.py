"""Costs as decoding pays them, from steps of the real engine.

A pass timed by itself in a loop is quicker than one between the host's own work, and than one beside a draft that
computes in the same caches. Every parameter is a mean over steps of texts that a simulation is not compared on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from forethought.decode.planning.curves import Curve
from forethought.decode.planning.model_of_speed import CostCurves


@dataclass(frozen=True)
class TimedStep:
    """A step of one text: its rows, the context before it, tokens that left, where its draft came from, and seconds."""

    num_rows: int
    context: int
    emitted: int
    source: str
    verify: float
    stall: float
    total: float

    @property
    def host(self) -> float:
        """Seconds that are neither the target's pass nor waiting for a draft."""
        return max(self.total - self.verify - self.stall, 0.0)


def speed(steps: Sequence[TimedStep]) -> float:
    """Return the tokens a second of steps."""
    return sum(step.emitted for step in steps) / sum(step.total for step in steps)


def calibrated(
    loop: CostCurves, plain: Sequence[TimedStep], classic: Sequence[TimedStep], foreseen: Sequence[TimedStep]
) -> CostCurves:
    """Return costs for a simulation from curves that were timed in a loop and steps of the three methods.

    Plain steps give the host's time and what it adds to every pass; classic ones, whose draft computes in turn with the
    target, the passes of several rows and those of the draft; steps with foreseen drafts the way of an answer and how
    much slower the target is beside the draft.
    """
    if loop.draft is None:
        return replace(loop, host=fmean(step.host for step in plain))
    added = max(fmean(step.verify - loop.target(step.num_rows, step.context) for step in plain), 0.0)
    drafted = [step for step in classic if step.source == "draft"]
    factor = fmean((step.verify - added) / loop.target(step.num_rows, step.context) for step in drafted)
    target = _changed(loop.target, added, max(factor, 0.1))
    by_curve = [(step.num_rows - 1) * loop.draft(1, step.context) for step in drafted]
    pace = sum(step.stall for step in drafted) / sum(by_curve)
    hits = [step for step in foreseen if step.source == "cache"] or foreseen
    return replace(
        loop,
        target=target,
        draft=replace(loop.draft, seconds=tuple(tuple(s * pace for s in row) for row in loop.draft.seconds)),
        host=fmean(step.host for step in plain),
        draft_link=fmean(step.host for step in drafted),
        link=fmean(step.host + step.stall for step in hits),
        contention=fmean(step.verify / target(step.num_rows, step.context) for step in foreseen),
    )


def _changed(curve: Curve, added: float, factor: float) -> Curve:
    """A curve whose passes of several rows take `factor` times as long and all `added` seconds more."""
    seconds = tuple(
        tuple(added + value * (1.0 if size == 1 else factor) for size, value in zip(curve.sizes, row, strict=True))
        for row in curve.seconds
    )
    return replace(curve, seconds=seconds)
