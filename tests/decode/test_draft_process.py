"""The draft process: what it is told, how it ends, and that nothing of it stays whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.decode.engines import VOCABULARY, random_prompts, save_pair

from forethought.core.errors import ArtefactError, ConfigError
from forethought.core.rng import generator
from forethought.decode.drafter.process import DraftProcess
from forethought.decode.drafter.speculator import identity_of, open_speculator
from forethought.decode.served import open_model
from forethought.decode.transports.in_process import InProcessTransport
from forethought.decode.transports.threads import ThreadTransport
from forethought.decode.transports.transport import BacklogError, PeerClosedError, Transport, TransportError
from forethought.decode.wire.messages import decode, encode
from forethought.decode.wire.protocol import (
    EMPTY_HASH,
    Demand,
    DraftSampling,
    Hello,
    Message,
    Outcome,
    Prefill,
    Spec,
    Tag,
    extend_hash,
)

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# A process that a test starts finds this checkout and the tests' own modules.
PYTHON_PATH = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "src")))
Start = Callable[..., DraftProcess]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setenv("PYTHONPATH", PYTHON_PATH)
    started: list[DraftProcess] = []

    def make(build: str = "echo", *, ready: bool = True, **options: Any) -> DraftProcess:
        settings = options.pop("settings", {})
        process = DraftProcess(settings, build=f"tests.decode.peers:{build}", **options)
        started.append(process)
        if ready:
            process.wait_until_ready()
        return process

    yield make
    for process in started:
        process.close()


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    limit = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > limit:
            return False
        time.sleep(0.005)
    return True


def exists(process_id: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def processor_seconds(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_life(start: Start) -> None:
    """One process for what needs no process of its own: pins, threads, 10^5 frames, idle sleep, a clean end."""
    descriptors, shared = len(os.listdir("/proc/self/fd")), sorted(os.listdir("/dev/shm"))
    core = max(os.sched_getaffinity(0))
    process = start(core=core, num_threads=2, capacity=1 << 16)
    process.send(b"!facts")
    assert process.receive(30.0) == f"{core} 2 2".encode()
    capabilities = process.capabilities
    assert (capabilities.name, capabilities.remote, capabilities.deterministic) == ("shared memory", True, False)
    assert capabilities.round_trip is not None
    assert capabilities.round_trip > 0.0
    exchange(process, num_frames=100_000)
    # The writer waits for each frame's place, so that one given up too early is overwritten at once.
    process.send(b"!flood 2000 32000")
    for number in range(2000):
        assert process.receive(30.0) == bytes([number % 251]) * 32_000, f"frame {number}"
    assert process.is_alive()
    time.sleep(0.2)
    before = processor_seconds(process.process_id)
    time.sleep(1.0)
    assert processor_seconds(process.process_id) - before < 0.05
    process_id, inner = process.process_id, process._process
    process.close()
    assert inner.returncode == 0
    assert not exists(process_id)
    assert not process.is_alive()
    assert process.log() == ""
    with pytest.raises(PeerClosedError, match="this side"):
        process.receive(0.0)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert sorted(os.listdir("/dev/shm")) == shared


def exchange(process: DraftProcess, num_frames: int) -> None:
    """Send frames of all sizes, many on their way at a time, and check that each comes back as it was."""
    random = generator(0, "test.exchange")
    content = random.bytes(1 << 16)
    sizes = random.integers(33, 400, num_frames)
    sizes[::997] = random.integers(400, 20_000, len(sizes[::997]))
    offsets = random.integers(0, (1 << 16) - 20_000, num_frames)
    received, budget, on_their_way = 0, 40_000, 0

    def receive() -> None:
        nonlocal received, on_their_way
        size, offset = int(sizes[received]), int(offsets[received])
        assert process.receive(30.0) == content[offset : offset + size], f"frame {received}"
        received += 1
        on_their_way -= size + 16

    for size, offset in zip(sizes.tolist(), offsets.tolist(), strict=True):
        # Both rings full would stop both sides: what is on its way must fit the ring back.
        while on_their_way + size + 16 > budget:
            receive()
        process.send(content[offset : offset + size], 30.0)
        on_their_way += size + 16
    while received < num_frames:
        receive()


def test_a_killed_process_is_noticed_and_named(start: Start) -> None:
    shared = sorted(os.listdir("/dev/shm"))
    process = start()
    process.send(b"!three")
    assert eventually(process.poll)
    assert process.receive(0.0) == b"1"
    assert process.is_alive()
    killer = threading.Timer(0.2, os.kill, (process.process_id, signal.SIGKILL))
    killer.start()
    # What it had sent can still be received, and a wait for more ends with it.
    assert [process.receive(None) for _ in range(2)] == [b"2", b"3"]
    for call in (lambda: process.receive(None), lambda: process.send(b"x"), lambda: process.receive(0.0)):
        with pytest.raises(PeerClosedError, match="the draft process was killed by SIGKILL"):
            call()
    assert not process.is_alive()
    killer.join()
    process.close()
    assert sorted(os.listdir("/dev/shm")) == shared


def test_an_exception_in_the_process_gives_its_last_words(start: Start) -> None:
    process = start(ready=False)
    process.send(b"!raise")
    with pytest.raises(PeerClosedError, match=r"(?s)ended with exit status 1.*RuntimeError: told to raise"):
        process.receive(30.0)


def test_sigterm_is_a_clean_end(start: Start) -> None:
    process = start()
    os.kill(process.process_id, signal.SIGTERM)
    with pytest.raises(PeerClosedError, match="ended with exit status 0"):
        process.receive(None)


def test_a_process_that_does_not_listen_is_ended_by_force(start: Start) -> None:
    process = start(ready=False)
    os.kill(process.process_id, signal.SIGSTOP)
    process.close()
    assert not exists(process.process_id)


@pytest.mark.parametrize(
    ("build", "settings", "error", "words"),
    [
        ("refuse", {"reason": "no such model"}, ArtefactError, "the draft process could not start: no such model"),
        ("break_down", {}, PeerClosedError, "exit status 1.*the weights are made of cheese"),
    ],
)
def test_a_failed_start_says_why(
    start: Start, build: str, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    process = start(build, ready=False, settings=settings)
    with pytest.raises(error, match=f"(?s){words}"):
        process.wait_until_ready()
    assert not exists(process.process_id)


def test_a_start_that_takes_too_long_is_given_up(start: Start) -> None:
    process = start("never", ready=False)
    with pytest.raises(BacklogError, match=r"did not (come up|open its model) within 2 s"):
        process.wait_until_ready(2.0)
    assert not exists(process.process_id)


def test_a_core_that_is_not_there_is_refused(start: Start) -> None:
    with pytest.raises(ConfigError, match="cannot run on core 4000"):
        start(core=4000)


def conversation(transport: Transport, identity: Hello, tokens: list[int]) -> list[list[int]]:
    """Introduce oneself, have a text read, and return the drafts that answer verdicts on it, without any foresight."""
    demand = Demand(wanted=4, budget=0)
    frames: list[Message] = [identity]
    prefix_hash = extend_hash(EMPTY_HASH, tokens)
    frames.append(Prefill(Tag(7, 0, 0, prefix_hash), np.array(tokens, dtype=np.int32), DraftSampling(0.0), 200, demand))
    for round_ in range(1, 6):
        kept = [round_, 2 * round_]
        prefix_hash = extend_hash(prefix_hash, kept)
        frames.append(Outcome(Tag(7, 0, round_, prefix_hash), -1, kept, demand))
    drafts: list[list[int]] = []
    for message in frames:
        transport.send(encode(message))
        if isinstance(message, Prefill):
            continue
        frame = transport.receive(30.0)
        assert frame is not None
        answer = decode(frame, VOCABULARY)
        if isinstance(answer, Spec):
            assert not answer.resync
            assert answer.tag == Tag(7, 0, len(drafts) + 1, answer.tag.prefix_hash)
            drafts.append(answer.tokens)
        else:
            assert isinstance(answer, Hello)
    return drafts


def test_a_real_draft_answers_as_in_process_over_every_transport(tmp_path: Path) -> None:
    _, draft = save_pair(tmp_path)
    settings = {
        "model": str(draft),
        "num_pages": 64,
        "backend": "torch",
        "options": {"num_speculative_tokens": 4, "budget": 0},
    }
    identity, tokens = identity_of(open_model(draft)), random_prompts(1, seed=5)[0]
    expected = conversation(InProcessTransport(open_speculator(**settings)), identity, tokens)
    assert [len(tokens) for tokens in expected] == [4] * 5
    thread = ThreadTransport(lambda: open_speculator(**settings))
    thread.wait_until_ready()
    assert conversation(thread, identity, tokens) == expected
    thread.close()
    with DraftProcess(settings) as process:
        process.wait_until_ready()
        assert conversation(process, identity, tokens) == expected


def test_a_real_draft_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with (
        DraftProcess({"model": str(tmp_path / "nothing"), "num_pages": 8}) as process,
        pytest.raises(ArtefactError, match=r"the draft process could not start: .*nothing"),
    ):
        process.wait_until_ready()


PARENT = """
import sys, threading, time
from forethought.decode.drafter.process import DraftProcess

def start():
    process = DraftProcess({}, build="tests.decode.peers:" + sys.argv[1])
    processes.append(process)
    if sys.argv[1] == "echo":
        process.wait_until_ready()

if __name__ == "__main__":
    processes = []
    start()
    # The kernel tells a child of the end of the thread that started it, which is not the end of the process.
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    if sys.argv[1] == "echo":
        # Both are in the middle of something when the end comes.
        for process in processes:
            process.send(b"!sleep")
    time.sleep(0.2)
    print(*(process.process_id for process in processes), *(process.is_alive() for process in processes), flush=True)
    if sys.argv[2] == "stay":
        time.sleep(600.0)
"""


def parent(tmp_path: Path, build: str, end: str) -> tuple[subprocess.Popen[str], list[int], list[str]]:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": PYTHON_PATH, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(script), build, end], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    *ids, first, second = process.stdout.readline().split()
    return process, [int(number) for number in ids], [first, second]


def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    shared = sorted(os.listdir("/dev/shm"))
    process, ids, alive = parent(tmp_path, "echo", "stay")
    try:
        assert alive == ["True", "True"]
        assert all(exists(number) for number in ids)
        process.kill()
        assert eventually(lambda: not any(exists(number) for number in ids))
    finally:
        process.kill()
        process.communicate()
    assert sorted(os.listdir("/dev/shm")) == shared


def test_no_process_outlives_a_parent_that_ends_without_closing(tmp_path: Path) -> None:
    process, ids, _ = parent(tmp_path, "never", "leave")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert eventually(lambda: not any(exists(number) for number in ids))


def test_a_process_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TransportError, match="refused a draft process"):
        DraftProcess({})
    assert len(os.listdir("/proc/self/fd")) == descriptors
