"""The counts and times of an engine as plain values: counters, gauges, and histograms with fixed bounds."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Counts of values up to each bound and beyond the last, with their sum."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def record(self, value: float, times: int = 1) -> None:
        """Count a value, or the same value several times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `counts` are not cumulative and the last is of all beyond the last bound."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum, "count": sum(self.counts)}


@dataclass
class EngineMetrics:
    """What an engine has seen since it started; every field only grows.

    `accepted_at` and `drafted_at` count by position in the draft, `rounds_by_source` the verdicts by where their draft
    came from, `finished` the samples by why they ended, `failed` errors by their message.
    """

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    drafted_at: Counter[int] = field(default_factory=Counter[int])
    accepted_at: Counter[int] = field(default_factory=Counter[int])
    rounds_by_source: Counter[str] = field(default_factory=Counter[str])
    finished: Counter[str] = field(default_factory=Counter[str])
    time_to_first_token: Histogram = field(default_factory=Histogram)
    inter_token_latency: Histogram = field(default_factory=Histogram)
    verify_seconds: Histogram = field(default_factory=Histogram)
    stall_seconds: Histogram = field(default_factory=Histogram)
    step_seconds: Histogram = field(default_factory=Histogram)

    def count_verdict(self, source: str, num_drafted: int, accepted: int) -> None:
        """Count one verdict on a draft of `num_drafted` tokens of which the first `accepted` were kept."""
        self.rounds_by_source[source] += 1
        for position in range(num_drafted):
            self.drafted_at[position] += 1
            if position < accepted:
                self.accepted_at[position] += 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: "counters", "by_position", "by_source", "finished" and "histograms"."""
        drafted, accepted = sum(self.drafted_at.values()), sum(self.accepted_at.values())
        return {
            "counters": {
                "prompt_tokens": self.prompt_tokens,
                "cached_prompt_tokens": self.cached_prompt_tokens,
                "generated_tokens": self.generated_tokens,
                "steps": self.steps,
                "drafted_tokens": drafted,
                "accepted_tokens": accepted,
            },
            "by_position": {
                "drafted": [self.drafted_at[k] for k in range(max(self.drafted_at, default=-1) + 1)],
                "accepted": [self.accepted_at[k] for k in range(max(self.drafted_at, default=-1) + 1)],
            },
            "by_source": dict(self.rounds_by_source),
            "finished": dict(self.finished),
            "histograms": {
                name: getattr(self, name).to_dict()
                for name in (
                    "time_to_first_token",
                    "inter_token_latency",
                    "verify_seconds",
                    "stall_seconds",
                    "step_seconds",
                )
            },
        }
