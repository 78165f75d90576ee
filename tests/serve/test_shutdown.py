"""SIGTERM: nothing new is taken, what is open finishes or is ended within the grace, and the process goes (R45)."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.house import House, events

SERVE = "import json, sys; from forethought.app.serve import serve_verb; print(json.dumps(serve_verb(sys.argv[1:])))"


@contextmanager
def serving(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """The real verb in a process of its own, once it listens."""
    command = [sys.executable, "-c", SERVE, *map(str, arguments), "--port", "0", "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://[\d.]+:\d+", line):
                break
        else:
            pytest.fail("".join(lines))
        threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True).start()
        with httpx.Client(base_url=found[0], timeout=30, trust_env=False) as client:
            for _ in range(100):
                if client.get("/health").status_code == 200:
                    break
                time.sleep(0.05)
            yield process, client
    finally:
        process.kill()
        process.communicate()


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_verb_serves_and_ends_within_its_grace(tiny_pair: tuple[Path, Path]):
    target, draft = tiny_pair
    with serving(target, "--draft", draft, "--method", "draft", "--num-speculative-tokens", 2, "--grace", 2) as (
        process,
        client,
    ):
        # Forty bodies of the size of the limit, bombs of nesting among them, leave no mark on its memory (R37).
        name = client.get("/v1/models").json()["data"][0]["id"]
        assert name == "target"
        warm = {"model": name, "prompt": "the cat", "max_tokens": 20}
        assert client.post("/v1/completions", json=warm).status_code == 200
        before = resident(process.pid)
        headers = {"content-type": "application/json"}
        for content in [b'{"a":' * 100_000, b"[" * 900_000, b" " * (1 << 20), b'{"prompt":"' + b"x" * (1 << 20)]:
            for _ in range(10):
                assert client.post("/v1/completions", content=content, headers=headers).status_code in (400, 413)
        grown = resident(process.pid) - before
        assert grown < 16 << 20, grown
        ended: list[tuple[float, Any]] = []

        def read() -> None:
            body = warm | {"max_tokens": 900, "stream": True, "ignore_eos": True, "n": 8}
            with client.stream("POST", "/v1/completions", json=body) as answer:
                ended.append((time.monotonic(), events(answer)))

        readers = [threading.Thread(target=read) for _ in range(6)]
        for reader in readers:
            reader.start()
        time.sleep(0.3)
        told = time.monotonic()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
        took = time.monotonic() - told
        for reader in readers:
            reader.join(10)
    assert took <= 2.0 + 1.0
    assert process.returncode == 0
    assert len(ended) == 6
    for _, seen in ended:
        reasons = {event["choices"][0]["index"]: event["choices"][0]["finish_reason"] for event in seen}
        assert set(reasons) == set(range(8))
        assert set(reasons.values()) <= {"length", "abort"}
    result = json.loads(output.splitlines()[-1])
    assert result["kind"] == "serve"
    assert sum(result["requests"].values()) >= 7


def test_a_server_that_closes_finishes_what_is_open_and_takes_nothing_new(new_house: Callable[..., House]):
    house = new_house(pace=0.01, limits={"grace": 5.0})
    body = {"model": "table", "prompt": "the", "max_tokens": 60, "stream": True, "ignore_eos": True, "speculate": False}
    seen: list[Any] = []

    def read() -> None:
        with house.http.stream("POST", "/v1/completions", json=body) as answer:
            seen.extend(events(answer))

    reader = threading.Thread(target=read)
    reader.start()
    house.until(lambda: house.bridge.num_open == 1)
    # A connection that is open when the server begins to close is still answered.
    other = httpx.Client(base_url=house.url, trust_env=False)
    assert other.get("/health").status_code == 200
    house.server.should_exit = True
    house.until(lambda: house.service.gate.is_draining)
    refused = other.post("/v1/completions", json=body)
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert other.get("/health").json() == {"status": "draining"}
    other.close()
    reader.join(10)
    assert seen[-1]["choices"][0]["finish_reason"] == "length"
    assert sum(len(event["choices"][0]["text"]) > 0 for event in seen) > 10


def test_what_outlasts_the_grace_ends_with_a_reason_streamed_or_not(new_house: Callable[..., House]):
    house = new_house(pace=0.02, limits={"grace": 1.0})
    body = {"model": "table", "prompt": "the", "max_tokens": 3000, "ignore_eos": True, "n": 2}
    streamed: list[Any] = []
    whole: list[Any] = []

    def read() -> None:
        with house.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
            streamed.extend(events(answer))

    threads = [
        threading.Thread(target=read),
        threading.Thread(target=lambda: whole.append(house.http.post("/v1/completions", json=body))),
    ]
    for thread in threads:
        thread.start()
    house.until(lambda: house.bridge.num_open == 2)
    told = time.monotonic()
    house.server.should_exit = True
    for thread in threads:
        thread.join(10)
    house._thread.join(10)
    assert time.monotonic() - told <= 1.0 + 1.0
    last = {event["choices"][0]["index"]: event["choices"][0]["finish_reason"] for event in streamed}
    assert last == {0: "abort", 1: "abort"}
    assert {choice["finish_reason"] for choice in whole[0].json()["choices"]} == {"abort"}


def test_a_step_that_hangs_does_not_hold_the_process(new_house: Callable[..., House]):
    house = new_house(limits={"grace": 0.5})
    released = threading.Event()
    house.bridge.model.step_hook = lambda: released.wait(20) and None
    with house.connect() as connection:
        connection.sendall(house.post("/v1/completions", {"model": "table", "prompt": "a", "max_tokens": 5}))
        house.until(lambda: house.bridge.num_open == 1)
        told = time.monotonic()
        house.server.should_exit = True
        house._thread.join(10)
        assert time.monotonic() - told <= 0.5 + 1.0 + 1.0
    released.set()


def test_a_second_signal_cuts_the_grace_short(new_house: Callable[..., House]):
    house = new_house(pace=0.02, limits={"grace": 30.0})
    with house.connect() as connection:
        body = {"model": "table", "prompt": "a", "max_tokens": 3000, "ignore_eos": True}
        connection.sendall(house.post("/v1/completions", body))
        house.until(lambda: house.bridge.num_open == 1)
        house.server.handle_exit(signal.SIGTERM, None)
        house.until(lambda: house.service.gate.is_draining)
        told = time.monotonic()
        house.server.handle_exit(signal.SIGTERM, None)
        house._thread.join(10)
        assert time.monotonic() - told < 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "ssd"], "needs a draft"),
        (["--host", "256.0.0.1"], "cannot listen"),
        (["--key-file", "/nonexistent"], "key file"),
    ],
)
def test_the_verb_says_what_it_cannot_use(tiny_pair: tuple[Path, Path], arguments: list[str], message: str):
    from forethought.app.serve import serve_verb
    from forethought.core.errors import InputError

    with pytest.raises(InputError, match=message):
        serve_verb([str(tiny_pair[0]), "--num-threads", "1", *arguments])


def test_an_address_that_is_taken_is_named(tiny_pair: tuple[Path, Path]):
    from forethought.app.serve import serve_verb
    from forethought.core.errors import InputError

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1:{port}"):
            serve_verb([str(tiny_pair[0]), "--num-threads", "1", "--port", str(port)])


def test_flags_become_the_config(tmp_path: Path, tiny_pair: tuple[Path, Path]):
    from forethought.app.serve import ServeArguments, server_config

    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}")
    given = ServeArguments(tiny_pair[0], host="::1", port=1, name="me", chat_template=template, grace=3.0, seed=5,
                           max_open_requests=7, max_request_cost=9)  # fmt: skip
    config = server_config(given)
    assert (config.host, config.port, config.name, config.seed) == ("::1", 1, "me", 5)
    assert config.chat_template == "{{ messages }}"
    assert (config.limits.grace, config.limits.open_requests, config.limits.cost) == (3.0, 7, 9)
    assert config.is_loopback
