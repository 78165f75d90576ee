"""What the server tells of itself, in Prometheus' text form: its own counts, and the engine's as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from forethought.core.faults import fault

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BY_NAME = {"by_source": ("drafts_by_source", "source"), "finished": ("samples_finished", "reason")}
_PLAIN = ("counters", "histograms", "gauges")
_LEVELS = ("_waiting", "_running", "_pages_used", "_pages_free", "_pages_cached")


class ServerMetrics:
    """Counters of one server; `snapshot` holds the engine's metrics when they are rendered."""

    def __init__(self, *, num_open: Callable[[], float], num_restarts: Callable[[], float]) -> None:
        self.snapshot: Mapping[str, Any] = {}
        self._registry = CollectorRegistry()
        named: dict[str, Any] = {"registry": self._registry, "namespace": "forethought"}
        self._requests = Counter("requests", "Requests by route and outcome", ["route", "outcome"], **named)
        self._first_token = Histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token", buckets=_SECONDS, **named
        )
        self._later_tokens = Histogram(
            "inter_token_latency_seconds",
            "Between the tokens of a text; those that came together share the wait",
            buckets=_SECONDS,
            **named,
        )
        self._duration = Histogram(
            "request_seconds", "From a request's arrival to its end", ["route"], buckets=_SECONDS, **named
        )
        self._tokens = Counter("served_tokens", "Tokens given to clients", **named)
        Gauge("open_samples", "Samples admitted and not finished", **named).set_function(num_open)
        Gauge("engine_restarts", "How often the engine was opened anew", **named).set_function(num_restarts)
        self._registry.register(_EngineCollector(lambda: self.snapshot))

    def first_token(self, seconds: float, num_tokens: int) -> None:
        """Count the first token of a text, and those that came with it."""
        self._first_token.observe(seconds)
        self._tokens.inc(num_tokens)
        for _ in range(num_tokens - 1):
            self._later_tokens.observe(0.0)

    def later_tokens(self, seconds: float, num_tokens: int) -> None:
        """Count tokens that came together, so many seconds after the last."""
        self._tokens.inc(num_tokens)
        for _ in range(num_tokens):
            self._later_tokens.observe(seconds / num_tokens)

    def ended(self, route: str, outcome: str, seconds: float) -> None:
        """Count a request: "ok", "gone" (the client left), "error", "aborted", or the status it was refused with."""
        self._requests.labels(route, outcome).inc()
        self._duration.labels(route).observe(seconds)

    def totals(self) -> dict[str, int]:
        """Return how many requests ended in which way, over all routes."""
        totals: dict[str, int] = {}
        for family in self._requests.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    outcome = sample.labels["outcome"]
                    totals[outcome] = totals.get(outcome, 0) + int(sample.value)
        return totals

    def text(self, snapshot: Mapping[str, Any]) -> bytes:
        """Return everything in Prometheus' text form, the engine's part from a snapshot of it."""
        fault("serve.metrics")
        self.snapshot = snapshot
        return generate_latest(self._registry)


class _EngineCollector:
    """The engine's plain values as metrics named by their path: numbers, lists by position, counts by name, histograms.

    What only ever grows is a counter; what stands at a level (or is a share, a mean, or of the plan) is a gauge.
    """

    def __init__(self, values: Callable[[], Mapping[str, Any]]) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        for group, content in self._values().items():
            if group in _BY_NAME and isinstance(content, Mapping):
                name, label = _BY_NAME[group]
                named = cast(Mapping[str, Any], content)
                yield _labelled(f"forethought_engine_{name}", named, label, counts=True)
            else:
                yield from _metrics("forethought_engine" if group in _PLAIN else f"forethought_engine_{group}", content)


def _metrics(path: str, value: Any) -> Iterator[Metric]:
    if isinstance(value, bool | int | float):
        kind = CounterMetricFamily if _grows(path, value) else GaugeMetricFamily
        yield kind(path, path.replace("_", " "), value=float(value))
    elif isinstance(value, Mapping):
        entries = cast(Mapping[str, Any], value)
        if {"bounds", "counts", "sum"} <= set(entries):
            yield _histogram(path, entries)
            return
        for name, entry in entries.items():
            yield from _metrics(f"{path}_{name}", entry)
    elif isinstance(value, list | tuple):
        places = [entry for entry in cast(Sequence[Any], value) if isinstance(entry, int | float)]
        while len(places) > 1 and not places[-1]:
            places.pop()
        by_position = {str(position): float(entry) for position, entry in enumerate(places)}
        yield _labelled(path, by_position, "position", counts=all(_grows(path, entry) for entry in places))


def _grows(path: str, value: float) -> bool:
    stands = isinstance(value, bool) or path.startswith("forethought_engine_plan") or path.endswith(_LEVELS)
    return not stands and (isinstance(value, int) or (path.endswith("_seconds") and "_mean_" not in path))


def _labelled(name: str, values: Mapping[str, Any], label: str, *, counts: bool) -> Metric:
    kind = CounterMetricFamily if counts else GaugeMetricFamily
    family = kind(name, name.replace("_", " "), labels=[label])
    for key, value in values.items():
        family.add_metric([str(key)], float(value))
    return family


def _histogram(name: str, values: Mapping[str, Any]) -> HistogramMetricFamily:
    bounds = [str(float(bound)) for bound in values["bounds"]] + ["+Inf"]
    cumulative = [float(count) for count in accumulate(values["counts"])]
    buckets = list(zip(bounds, cumulative, strict=True))
    return HistogramMetricFamily(name, name.replace("_", " "), buckets=buckets, sum_value=float(values["sum"]))
