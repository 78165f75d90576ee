"""More requests than can be served: the queue stays bounded, the rest is told when to come again (R40)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx
import pytest

from forethought.serve import Gate
from forethought.serve.errors import ApiError
from tests.serve.house import House

PACE, SLOTS, TOKENS, PLACES = 0.01, 4, 20, 12


async def _flood(house: House, rate: float, seconds: float) -> list[tuple[int, float, httpx.Headers]]:
    """Send requests at a rate, whatever becomes of those before, and return status, seconds and headers of each."""
    body = {"model": "table", "prompt": [5], "max_tokens": TOKENS, "ignore_eos": True, "speculate": False}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=house.url, timeout=30, trust_env=False, limits=limits) as client:

        async def one() -> tuple[int, float, httpx.Headers]:
            began = time.perf_counter()
            answer = await client.post("/v1/completions", json=body)
            return answer.status_code, time.perf_counter() - began, answer.headers

        sent: list[asyncio.Task[tuple[int, float, httpx.Headers]]] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sent.append(asyncio.create_task(one()))
            await asyncio.sleep(1 / rate)
        return await asyncio.gather(*sent)


def _overload(house: House, seconds: float) -> tuple[float, float, list[float]]:
    """Return goodput at capacity and at five times it, in requests a second, and the times of the refusals."""
    capacity = SLOTS / (PACE * TOKENS)
    began = time.monotonic()
    calm = asyncio.run(_flood(house, capacity, seconds))
    peak = sum(status == 200 for status, _, _ in calm) / (time.monotonic() - began)
    assert all(status in (200, 429) for status, _, _ in calm)
    began = time.monotonic()
    stormy = asyncio.run(_flood(house, 5 * capacity, seconds))
    took = time.monotonic() - began
    refused = [(took, headers) for status, took, headers in stormy if status == 429]
    served = sum(status == 200 for status, _, _ in stormy)
    # Every request was answered, with one of two statuses: none that was admitted is dropped.
    assert served + len(refused) == len(stormy)
    assert refused
    for _, headers in refused:
        assert 1 <= int(headers["retry-after"]) <= 60
    house.until(house.is_idle)
    return peak, served / took, sorted(took for took, _ in refused)


def test_five_times_the_capacity_is_survived(new_house: Callable[..., House]):
    house = new_house(pace=PACE, slots=SLOTS, limits={"open_requests": PLACES})
    most = 0
    engine_add = house.engine.add

    def add(*given: object, **named: object) -> int:
        nonlocal most
        most = max(most, len(house.engine.samples) + 1)
        return engine_add(*given, **named)

    house.engine.add = add
    peak, goodput, refusals = _overload(house, 2.0)
    assert most <= PLACES
    assert goodput > 0.6 * peak, (goodput, peak)
    assert refusals[len(refusals) // 2] < 0.5
    assert house.service.gate.num_refused == len(refusals)


@pytest.mark.nightly
def test_five_times_the_capacity_for_a_minute(new_house: Callable[..., House], capsys: pytest.CaptureFixture[str]):
    house = new_house(pace=PACE, slots=SLOTS, limits={"open_requests": PLACES})
    peak, goodput, refusals = _overload(house, 60.0)
    with capsys.disabled():
        print(f"\npeak {peak:.1f}/s goodput {goodput:.1f}/s refusal p50 {1e3 * refusals[len(refusals) // 2]:.1f} ms")
    assert goodput > 0.95 * peak
    assert refusals[len(refusals) // 2] < 0.05


def test_the_gate_counts_samples_and_opens_again():
    now = [0.0]
    gate = Gate(4, clock=lambda: now[0])
    with gate.admit(3):
        with pytest.raises(ApiError) as refusal, gate.admit(2):
            pytest.fail("there was no room")
        assert refusal.value.status == 429
        assert refusal.value.headers["Retry-After"] == "1"
        with gate.admit(1):
            assert gate.num_open == 4
    assert gate.num_open == 0
    gate.is_draining = True
    with pytest.raises(ApiError) as refusal, gate.admit(1):
        pytest.fail("the house was closing")
    assert refusal.value.status == 503


def test_retry_after_follows_the_rate_of_late():
    now = [0.0]
    gate = Gate(4, clock=lambda: now[0])
    for second in range(10):
        now[0] = 2.0 * second
        with gate.admit(1):
            pass
    gate.num_open = 4
    # One place every two seconds or so: four of them take eight.
    assert 7 <= gate.retry_after(4) <= 9
    assert gate.retry_after(10_000) == 60


def test_a_failure_inside_gives_the_place_back():
    gate = Gate(1)
    for _ in range(3):
        with pytest.raises(KeyError), gate.admit(1):
            raise KeyError
    assert gate.num_open == 0
