"""Clients that send slowly, read slowly or vanish: none holds a connection, a request or a page (R36 and R38)."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest

from tests.serve.house import House, drained

# Deadlines are what is tested here, so times are: each must pass within a tenth of it, and a scheduler's slack.
SLACK = 1.0


def _drip(connection: socket.socket, content: bytes, seconds: float) -> threading.Thread:
    def drip() -> None:
        for byte in content:
            try:
                connection.send(bytes([byte]))
            except OSError:
                return
            time.sleep(seconds)

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("dripping", [False, True])
@pytest.mark.parametrize("used_before", [False, True])
def test_a_header_must_arrive_in_time(new_house: Callable[..., House], dripping: bool, used_before: bool):
    house = new_house(limits={"header": 0.5})
    with house.connect() as connection:
        if used_before:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(4096)
        began = time.monotonic()
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        dripper = _drip(connection, b"X-Slow: " + b"x" * 400, 0.02) if dripping else None
        answer = drained(connection)
        waited = time.monotonic() - began
    assert 0.4 < waited < 0.55 + SLACK
    assert answer.startswith(b"HTTP/1.1 408 ")
    if dripper is not None:
        dripper.join()


def test_an_idle_connection_is_closed(new_house: Callable[..., House]):
    house = new_house(limits={"idle": 1.0, "header": 0.5})
    with house.connect() as silent, house.connect() as used:
        began = time.monotonic()
        used.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        drained(silent)
        assert time.monotonic() - began < 0.55 + SLACK
        drained(used)
        assert 0.9 < time.monotonic() - began < 1.1 + SLACK


@pytest.mark.parametrize("key", [None, "secret"])
def test_a_body_must_arrive_in_time_also_where_nobody_wants_it(new_house: Callable[..., House], key: str | None):
    house = new_house(limits={"body": 0.5, "header": 0.5}, key=key)
    with house.connect() as connection:
        began = time.monotonic()
        connection.sendall(house.post("/v1/completions", b"x" * 5000)[:-4900])
        dripper = _drip(connection, b"x" * 200, 0.02)
        answer = drained(connection)
        assert time.monotonic() - began < 1.1 * (0.5 + 1.0) + SLACK
        dripper.join()
    assert answer.split()[1] == (b"408" if key is None else b"401")


def test_a_thousand_slow_headers_lock_nobody_out(new_house: Callable[..., House]):
    house = new_house(limits={"header": 3.0, "connections": 64})
    crowd = []
    try:
        for _ in range(1000):
            connection = house.connect()
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nX-Half: ")
            crowd.append(connection)
        statuses = {house.complete(max_tokens=1).status_code for _ in range(20)}
        assert statuses == {200}
        assert len(house.server.server_state.connections) <= 65
    finally:
        for connection in crowd:
            connection.close()


def test_a_reader_that_stops_reading_is_cut_and_its_request_freed(new_house: Callable[..., House]):
    house = new_house(limits={"write": 0.5, "cost": 1 << 30}, max_length=1 << 20)
    with house.connect(receive_buffer=4096) as connection:
        body = {"model": "table", "prompt": "the", "max_tokens": 100_000, "stream": True, "logprobs": 20, "n": 4}
        connection.sendall(house.post("/v1/completions", body | {"ignore_eos": True}))
        house.until(lambda: house.service.gate.num_open == 4)
        protocol = next(iter(house.server.server_state.connections))
        house.until(lambda: protocol.flow.write_paused, 30)
        waited = house.until(house.is_idle, 20)
    assert waited < 0.55 + SLACK
    assert house.metric("forethought_requests_total", outcome="gone") == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("abruptly", [True, False])
def test_a_client_that_vanishes_frees_its_request(new_house: Callable[..., House], stream: bool, abruptly: bool):
    house = new_house(pace=0.01)
    connection = house.connect()
    body = {"model": "table", "prompt": ["the", "a"], "max_tokens": 2000, "stream": stream, "ignore_eos": True, "n": 2}
    connection.sendall(house.post("/v1/completions", body))
    house.until(lambda: house.engine.counts.generated_tokens > 10)
    assert house.service.gate.num_open == 4
    if abruptly:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert house.until(house.is_idle) < 0.01 + 0.25 + SLACK
    assert house.metric("forethought_requests_total", outcome="gone") == 1
    assert house.engine.counts.finished["abort"] == 4


def test_a_client_that_vanishes_while_it_waits_in_the_queue_frees_its_place(new_house: Callable[..., House]):
    house = new_house(pace=0.02, slots=1)
    with house.connect() as first:
        body = {"model": "table", "prompt": "the", "max_tokens": 1000, "stream": True, "ignore_eos": True}
        first.sendall(house.post("/v1/completions", body))
        house.until(lambda: house.engine.counts.generated_tokens > 2)
        second = house.connect()
        second.sendall(house.post("/v1/completions", body | {"stream": False}))
        house.until(lambda: house.service.gate.num_open == 2 and len(house.engine.samples) == 2)
        second.close()
        house.until(lambda: house.service.gate.num_open == 1 and len(house.engine.samples) == 1)
    house.until(house.is_idle)


def test_nothing_is_left_of_many_clients_that_come_and_go(new_house: Callable[..., House]):
    house = new_house(pace=0.002)
    body = {"model": "table", "prompt": "the", "max_tokens": 500, "ignore_eos": True}
    request = house.post("/v1/completions", body)
    for turn in range(150):
        with house.connect() as connection:
            # Some leave in the middle of the header, some of the body, some of the answer.
            connection.sendall(request[: len(request) * (turn % 4 + 1) // 4])
            if turn % 8 == 7:
                time.sleep(0.01)
    house.until(house.is_idle)
    house.until(lambda: len(house.server.server_state.connections) <= 1)
    assert not house.server.server_state.tasks
    assert house.complete(max_tokens=2).status_code == 200


def test_answers_are_sent_at_once_and_kernels_keep_little(house: House):
    """Nagle's algorithm would hold every answer back 40 ms, and a slow reader's megabytes would lie in the kernel."""
    with house.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(4096)
        port = connection.getsockname()[1]
        protocol = next(each for each in house.server.server_state.connections if each.client[1] == port)
        served = protocol.transport.get_extra_info("socket")
        assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert served.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert served.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 1 << 20
