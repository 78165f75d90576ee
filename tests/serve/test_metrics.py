"""What the server tells of itself is in Prometheus' form, agrees with what happened, and costs the engine nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from forethought.serve import Bridge
from forethought.serve.errors import ApiError
from forethought.serve.metrics import ServerMetrics
from forethought.serve.worker import State
from tests.serve.house import House, events


def _families(house: House) -> dict[str, Any]:
    answer = house.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def test_counts_agree_with_what_was_asked(new_house: Callable[..., House]):
    house = new_house()
    for _ in range(3):
        house.complete(max_tokens=10, ignore_eos=True)
    house.chat(max_tokens=7, ignore_eos=True, n=2)
    house.complete(bogus=1)
    house.http.post("/v1/completions", json={"model": "other", "prompt": "a"})
    with house.http.stream(
        "POST", "/v1/completions", json={"model": "table", "prompt": "a", "max_tokens": 5, "stream": True}
    ) as answer:
        events(answer)
    families = _families(house)
    outcomes = {
        (sample.labels["route"], sample.labels["outcome"]): sample.value
        for sample in families["forethought_requests"].samples
        if sample.name.endswith("_total")
    }
    assert outcomes == {
        ("completions", "ok"): 4,
        ("chat", "ok"): 1,
        ("completions", "400"): 1,
        ("completions", "404"): 1,
    }
    tokens = house.engine.counts.generated_tokens
    assert house.metric("forethought_served_tokens_total") == tokens
    assert house.metric("forethought_engine_generated_tokens_total") == tokens
    assert house.metric("forethought_time_to_first_token_seconds_count") == 6
    assert house.metric("forethought_inter_token_latency_seconds_count") == tokens - 6
    assert house.metric("forethought_open_samples") == 0


def test_the_engines_own_counts_are_told_by_position_source_and_reason(new_house: Callable[..., House]):
    house = new_house()
    house.complete(max_tokens=200, ignore_eos=True)
    counts = house.engine.counts
    for position in range(3):
        for kind, values in (("drafted", counts.drafted_at), ("accepted", counts.accepted_at)):
            name = f"forethought_engine_by_position_{kind}_total"
            assert house.metric(name, position=str(position)) == values[position] > 0
    for source in ("cache", "draft"):
        name = "forethought_engine_drafts_by_source_total"
        assert house.metric(name, source=source) == counts.rounds_by_source[source] > 0
    assert house.metric("forethought_engine_samples_finished_total", reason="length") == 1
    assert house.metric("forethought_engine_verify_seconds_count") == counts.steps
    # The source's own account: hits by accepted length, trailing zeros left out, and after a miss.
    assert house.metric("forethought_engine_source_lookups_at_total", position="2") == 1
    assert house.metric("forethought_engine_source_hits_at_total", position="1") == 1
    assert house.metric("forethought_engine_source_hits_after_miss_total") == 1
    assert house.metric("forethought_engine_gauges_waiting") == 0


def test_a_histogram_keeps_its_sum_and_counts():
    metrics = ServerMetrics(num_open=lambda: 0.0, num_restarts=lambda: 0.0)
    histogram = {"bounds": [0.1, 1.0], "counts": [2, 3, 1], "sum": 4.5, "count": 6}
    text = metrics.text(
        {"histograms": {"verify_seconds": histogram}, "plan": {"k": 3, "name": "x", "on": True}}
    ).decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {(s.name, s.labels.get("le")): s.value for s in found["forethought_engine_verify_seconds"].samples}
    assert samples == {
        ("forethought_engine_verify_seconds_bucket", "0.1"): 2,
        ("forethought_engine_verify_seconds_bucket", "1.0"): 5,
        ("forethought_engine_verify_seconds_bucket", "+Inf"): 6,
        ("forethought_engine_verify_seconds_count", None): 6,
        ("forethought_engine_verify_seconds_sum", None): 4.5,
    }
    assert found["forethought_engine_plan_k"].type == "gauge"
    assert found["forethought_engine_plan_on"].type == "gauge"


def test_the_real_engine_tells_everything_there_is_to_watch(real_house: House):
    real_house.complete("the cat sat", max_tokens=80, ignore_eos=True)
    names = set(_families(real_house))
    for name in (
        "time_to_first_token_seconds", "inter_token_latency_seconds", "engine_by_position_accepted",
        "engine_source_draft_hits_by_length", "engine_source_draft_misses_by_length",
        "engine_source_draft_hits_after_miss", "engine_verify_seconds", "engine_stall_seconds",
        "engine_drafts_by_source", "engine_scheduler_num_waiting", "engine_scheduler_num_pages_free", "requests",
    ):  # fmt: skip
        assert f"forethought_{name}" in names, sorted(names)


_LONG = {"model": "table", "prompt": "a", "max_tokens": 3, "ignore_eos": True}


def test_metrics_are_answered_during_a_long_step_and_survive_their_own_failure(new_house: Callable[..., House]):
    house = new_house()
    house.complete(max_tokens=10, ignore_eos=True)
    tokens = house.metric("forethought_engine_generated_tokens_total")
    assert tokens == 10
    released = threading.Event()
    house.bridge.model.step_hook = lambda: released.wait(10) and None
    with house.connect() as connection:
        connection.sendall(house.post("/v1/completions", _LONG))
        house.until(lambda: house.bridge.num_open == 1)
        assert house.metric("forethought_engine_generated_tokens_total") == tokens
        released.set()
        house.until(house.is_idle)
    tokens = house.metric("forethought_engine_generated_tokens_total")
    assert tokens == 13

    def broken() -> None:
        raise RuntimeError("planted")

    house.bridge.model.metrics = broken
    assert house.metric("forethought_engine_generated_tokens_total") == tokens
    assert house.bridge.num_restarts == 0


def test_a_bridge_that_is_not_open_takes_nothing():
    def never() -> Any:
        raise AssertionError

    bridge = Bridge(never)
    assert bridge.state is State.STARTING
    assert bridge.num_restarts == 0
    with pytest.raises(ApiError) as refused:
        _ = bridge.model
    assert refused.value.status == 503
    assert asyncio.run(bridge.metrics()) == {}
