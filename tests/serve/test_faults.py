"""Faults at every named point, and an engine that crashes or hangs: the right status, nobody else harmed (R39, R12)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from forethought.core.errors import ArtefactError
from forethought.core.faults import faults
from forethought.data import Tokenizer
from forethought.serve import Bridge
from tests.serve.house import House, events
from tests.serve.table import TableModel


class Table:
    """A fault table that strikes once at one point, when armed."""

    def __init__(self) -> None:
        self.point: str | None = None
        self.delay: float | None = None
        self.struck = threading.Event()

    def arm(self, point: str, delay: float | None = None) -> None:
        self.struck.clear()
        self.delay, self.point = delay, point

    def __call__(self, point: str) -> None:
        if point != self.point:
            return
        self.point = None
        self.struck.set()
        if self.delay is None:
            raise OSError("/etc/secret: planted at " + point)
        time.sleep(self.delay)


@pytest.fixture
def table(tokenizer: Tokenizer) -> Any:
    with ExitStack() as stack:
        made = Table()
        stack.enter_context(faults(made))
        yield made


BEFORE_THE_ENGINE = ("serve.tokenise", "serve.admit", "serve.write")
IN_THE_ENGINE = ("serve.step", "engine.sample", "engine.emit")


@pytest.mark.parametrize("point", BEFORE_THE_ENGINE + IN_THE_ENGINE)
@pytest.mark.parametrize("stream", [False, True])
def test_an_exception_ends_its_request_and_no_other(
    table: Table, new_house: Callable[..., House], point: str, stream: bool
):
    house = new_house(pace=0.005)
    wanted = house.complete("the dog", seed=5, max_tokens=60, temperature=1.0).json()["choices"][0]["text"]
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(house.complete, "the dog", seed=5, max_tokens=60, temperature=1.0)
        house.until(lambda: house.engine.has_work)
        table.arm(point)
        began = time.monotonic()
        status, text = _attempt(house, stream)
        assert time.monotonic() - began < 5
        assert table.struck.is_set()
        assert status == 500 or "error" in text or text == ""
        assert "planted" not in text
        assert "secret" not in text
        if point in BEFORE_THE_ENGINE:
            assert neighbour.result().json()["choices"][0]["text"] == wanted
        else:
            # The engine is gone, and with it everybody: each is told at once, and the next is served.
            assert neighbour.result().status_code == 500
            house.until(lambda: house.http.get("/health").status_code == 200)
            assert house.bridge.num_restarts == 1
    again = house.complete("the dog", seed=5, max_tokens=60, temperature=1.0).json()["choices"][0]["text"]
    assert again == wanted
    house.until(house.is_idle)


def _attempt(house: House, stream: bool) -> tuple[int, str]:
    if not stream:
        answer = house.complete(max_tokens=5)
        return answer.status_code, answer.text
    import httpx

    try:
        with house.http.stream(
            "POST", "/v1/completions", json={"model": "table", "prompt": "the", "max_tokens": 5, "stream": True}
        ) as answer:
            return answer.status_code, answer.read().decode()
    except httpx.RemoteProtocolError:
        return 200, ""


@pytest.mark.parametrize("point", BEFORE_THE_ENGINE + IN_THE_ENGINE)
def test_a_delay_harms_nobody(table: Table, new_house: Callable[..., House], point: str):
    house = new_house()
    wanted = house.complete(seed=5, max_tokens=20).json()["choices"][0]["text"]
    table.arm(point, delay=0.2)
    assert house.complete(seed=5, max_tokens=20).json()["choices"][0]["text"] == wanted
    assert table.struck.is_set()
    assert house.bridge.num_restarts == 0


def test_a_poisoned_request_fails_alone(new_house: Callable[..., House]):
    house = new_house(pace=0.005)
    wanted = house.complete("the dog", seed=5, max_tokens=40).json()["choices"][0]["text"]
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(house.complete, "the dog", seed=5, max_tokens=40)
        house.until(lambda: house.engine.has_work)
        house.engine.poison.add(house.engine.next_id)
        answer = house.complete(max_tokens=5)
        assert answer.status_code == 500
        assert "poison" not in answer.text
        assert neighbour.result().json()["choices"][0]["text"] == wanted
    assert house.bridge.num_restarts == 0
    house.until(house.is_idle)


def test_a_crash_ends_open_streams_within_two_seconds_and_the_engine_comes_back(new_house: Callable[..., House]):
    house = new_house(pace=0.01)
    body = {"model": "table", "prompt": "the", "max_tokens": 3000, "stream": True, "ignore_eos": True}
    ends: list[tuple[float, str]] = []

    def read() -> None:
        with house.http.stream("POST", "/v1/completions", json=body) as answer:
            text = answer.read().decode()
        ends.append((time.monotonic(), text))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    house.until(lambda: house.bridge.num_open == 4 and house.engine.counts.generated_tokens > 20)
    old = house.bridge.model
    struck = time.monotonic()

    def crash() -> None:
        raise RuntimeError("planted")

    old.step_hook = crash
    for reader in readers:
        reader.join(10)
    assert len(ends) == 4
    for at, text in ends:
        assert at - struck < 2.0
        assert text.rstrip().splitlines()[-1].startswith('data: {"error":')
        assert "[DONE]" not in text
    house.until(lambda: house.http.get("/health").status_code == 200)
    assert house.bridge.model is not old
    assert old.is_closed
    assert house.metric("forethought_engine_restarts") == 1
    assert house.metric("forethought_requests_total", outcome="error") == 4
    assert house.complete(max_tokens=3).status_code == 200


def test_an_engine_that_crashes_again_and_again_is_given_up(tokenizer: Tokenizer, new_house: Callable[..., House]):
    def broken() -> TableModel:
        model = TableModel(tokenizer)

        def crash() -> None:
            raise RuntimeError("planted")

        model.step_hook = crash
        return model

    house = new_house(open_model=broken, max_restarts=1)
    seen = set()

    def given_up() -> bool:
        seen.add(house.complete(max_tokens=3).status_code)
        return house.http.get("/health").json() == {"status": "failed"}

    house.until(given_up)
    answer = house.complete(max_tokens=3)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert seen <= {500, 503}


def test_a_step_that_hangs_is_noticed_and_forgiven(new_house: Callable[..., House]):
    house = new_house(limits={"step": 0.3})
    released = threading.Event()
    house.bridge.model.step_hook = lambda: released.wait(10) and None
    began = time.monotonic()
    assert house.complete(max_tokens=5).status_code == 500
    assert time.monotonic() - began < 0.3 + 1.0
    assert house.http.get("/health").status_code == 503
    assert house.complete(max_tokens=5).status_code == 503
    released.set()
    house.until(lambda: house.http.get("/health").status_code == 200)
    house.until(house.is_idle)
    assert house.complete(max_tokens=5).status_code == 200


def test_a_model_that_cannot_be_opened_says_why():
    def absent() -> TableModel:
        raise ArtefactError("there is nothing here")

    with pytest.raises(ArtefactError, match="nothing here"):
        Bridge(absent).open()


def test_an_abort_of_before_a_crash_ends_nobody_after_it(tokenizer: Tokenizer, new_house: Callable[..., House]):
    house = new_house(pace=0.01)
    with house.connect() as connection:
        connection.sendall(house.post("/v1/completions", {"model": "table", "prompt": "the", "max_tokens": 3000}))
        house.until(lambda: house.bridge.num_open == 1)
        old = next(iter(house.bridge._open))
        house.until(lambda: old.request_id == 0)

        def crash() -> None:
            raise RuntimeError("planted")

        house.bridge.model.step_hook = crash
        house.until(lambda: house.bridge.num_restarts == 1 and house.http.get("/health").status_code == 200)
    body = {"model": "table", "prompt": "the", "max_tokens": 60, "stream": True, "ignore_eos": True}
    with house.http.stream("POST", "/v1/completions", json=body) as answer:
        house.until(lambda: house.bridge.num_open == 1)
        assert next(iter(house.bridge._open)).request_id in (0, None)
        house.bridge._thread.abort(old)
        assert events(answer)[-1]["choices"][0]["finish_reason"] == "length"
