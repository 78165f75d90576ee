"""Transports keep frames whole and in order, notice the end of the other side, and leave nothing behind."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decode.chaos import Chaos, ChaosTransport
from tests.decode.peers import Echo, Worker, break_down, refuse

from forethought.core.errors import ArtefactError, ConfigError
from forethought.core.rng import generator
from forethought.decode.transports.in_process import InProcessTransport
from forethought.decode.transports.ring import record_size
from forethought.decode.transports.serving import await_speculator, run_speculator, serve_speculator
from forethought.decode.transports.shared_memory import SharedMemoryTransport
from forethought.decode.transports.threads import ThreadTransport
from forethought.decode.transports.transport import (
    BacklogError,
    FrameSizeError,
    PeerClosedError,
    Transport,
    TransportError,
)

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# A process that a test starts finds this checkout and the tests' own modules.
PYTHON_PATH = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "src")))
PAGE = os.sysconf("SC_PAGESIZE")


def pair(capacity: int = PAGE, spin: float = 50e-6) -> tuple[SharedMemoryTransport, SharedMemoryTransport]:
    """Both sides of shared memory in this process."""
    here = SharedMemoryTransport.create(capacity, spin=spin)
    segment, link = (os.dup(descriptor) for descriptor in here.peer_descriptors)
    there = SharedMemoryTransport.attach(segment, link, spin=spin)
    here.release_peer()
    return here, there


def in_process() -> Iterator[Transport]:
    yield InProcessTransport(Echo(), max_frame=1 << 16)


def in_thread() -> Iterator[Transport]:
    transport = ThreadTransport(Echo)
    transport.wait_until_ready()
    yield transport
    transport.close()


def in_shared_memory() -> Iterator[Transport]:
    here, there = pair(1 << 16)
    thread = threading.Thread(target=serve_speculator, args=(there, Echo))
    thread.start()
    here.note_round_trip(await_speculator(here, 30.0))
    yield here
    here.close()
    thread.join()
    there.close()


@pytest.fixture(params=[in_process, in_thread, in_shared_memory], ids=lambda maker: maker.__name__)
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    yield from request.param()


def test_frames_come_back_whole_and_in_order(transport: Transport) -> None:
    random = generator(0, "test.frames")
    frames = [random.bytes(int(size)) for size in random.integers(0, 3000, 200)]
    for begin in range(0, len(frames), 10):
        batch = frames[begin : begin + 10]
        for number, frame in enumerate(batch):
            transport.send((frame, bytearray(frame), memoryview(frame))[number % 3])
        assert [transport.receive(10.0) for _ in batch] == batch
    assert transport.receive(0.0) is None
    assert not transport.poll()
    assert transport.is_alive()


def test_a_sent_buffer_may_be_reused_at_once(transport: Transport) -> None:
    buffer = bytearray(b"first " * 10)
    transport.send(buffer)
    buffer[:5] = b"other"
    assert transport.receive(10.0) == b"first " * 10


def test_any_contiguous_buffer_is_a_frame(transport: Transport) -> None:
    values = memoryview(bytes(range(64))).cast("Q", (2, 4))
    transport.send(values)
    assert transport.receive(10.0) == bytes(range(64))


def test_capabilities_say_what_was_measured(transport: Transport) -> None:
    capabilities = transport.capabilities
    assert capabilities.deterministic is isinstance(transport, InProcessTransport)
    assert capabilities.round_trip is not None
    assert (capabilities.round_trip == 0.0) is capabilities.deterministic


def test_a_frame_too_large_is_refused_and_the_rest_goes_on(transport: Transport) -> None:
    limit = transport.capabilities.max_frame
    if limit <= 1 << 20:
        with pytest.raises(FrameSizeError, match=f"{limit + 1} bytes exceeds the transport's {limit}"):
            transport.send(bytes(limit + 1))
        transport.send(bytes(limit))
        assert transport.receive(10.0) == bytes(limit)
    else:
        size = 1 << 22
        transport.send(bytes(size))
        assert transport.receive(10.0) == bytes(size)


def test_a_closed_side_says_so(transport: Transport) -> None:
    transport.close()
    transport.close()
    assert not transport.is_alive()
    assert not transport.poll()
    for call in (lambda: transport.send(b"x"), lambda: transport.receive(0.0), lambda: transport.receive(None)):
        with pytest.raises(PeerClosedError, match="was closed"):
            call()


def test_poll_sees_a_frame_and_leaves_it(transport: Transport) -> None:
    transport.send(b"x")
    limit = time.monotonic() + 10.0
    while not transport.poll():
        assert time.monotonic() < limit
    assert transport.poll()
    assert transport.receive(0.0) == b"x"


# In process


def test_work_comes_after_all_that_was_sent_and_before_the_answers_are_read() -> None:
    worker = Worker(units=3)
    transport = InProcessTransport(worker)
    transport.send(b"a")
    transport.send(b"b")
    assert worker.notes == ["a", "b"]
    assert transport.receive() == b"a1"
    assert worker.notes == ["a", "b", "work", "work", "work"]
    assert transport.receive() == b"b2"
    assert transport.receive() == b"done"
    assert transport.receive() is None
    assert worker.notes.count("work") == 3


@pytest.mark.parametrize("limit", [0, 2])
def test_a_work_limit_makes_the_other_side_late(limit: int) -> None:
    worker = Worker(units=3)
    transport = InProcessTransport(worker, work_limit=limit)
    for number in range(2):
        transport.send(b"a")
        assert transport.receive() == b"a%d" % (1 + number * (limit + 1))
        assert transport.receive() is None
    assert worker.notes == ["a", *["work"] * limit] * 2


def test_what_a_handler_raises_in_process_is_raised_here() -> None:
    with pytest.raises(RuntimeError, match="told to raise"):
        InProcessTransport(Echo()).send(b"!raise")


# The loop


def test_the_loop_takes_what_is_there_before_it_works_and_a_frame_waits_for_one_unit_only() -> None:
    here, there = pair()

    class Interrupting(Worker):
        def work(self) -> bool:
            if self.notes.count("work") == 1:
                here.send(b"c")
            if self.notes.count("work") == 4:
                here.close()
            return super().work()

    worker = Interrupting(units=5)
    here.send(b"a")
    here.send(b"b")
    run_speculator(worker, there)
    there.close()
    assert worker.notes[:5] == ["a", "b", "work", "work", "c"]


def test_the_loop_sends_what_work_came_to() -> None:
    # The first frame waits for the start, so that it never meets the measuring of the round trip.
    transport = ThreadTransport(lambda: Worker(units=2))
    transport.send(b"a")
    assert [transport.receive(10.0) for _ in range(2)] == [b"a1", b"done"]
    transport.close()


# Rings


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.none(), st.integers(0, PAGE - 8), st.integers(0, 40)), max_size=80), st.integers(0, 2**32))
def test_a_ring_is_a_queue_whatever_the_sizes(steps: list[int | None], seed: int) -> None:
    """None reads a frame, a number writes one of that size; what has no room is refused and changes nothing."""
    here, there = pair()
    random, waiting = generator(seed, "test.ring"), deque[bytes]()
    for size in steps:
        if size is None:
            assert there.receive(0.0) == (waiting.popleft() if waiting else None)
            continue
        frame = random.bytes(size)
        if sum(record_size(len(other)) for other in waiting) + record_size(size) <= PAGE:
            here.send(frame, 0.0)
            waiting.append(frame)
        else:
            with pytest.raises(BacklogError):
                here.send(frame, 0.0)
    assert [there.receive(0.0) for _ in waiting] == list(waiting)
    here.close()
    there.close()


def test_every_offset_of_the_wrap_is_met() -> None:
    here, there = pair()
    frame = bytes(range(1, 241)) * 8
    for _ in range(PAGE // 8):
        here.send(frame[:1908])
        assert there.receive(0.0) == frame[:1908]
        here.send(b"")
        assert there.receive(0.0) == b""
    here.close()
    there.close()


def test_a_ring_takes_what_fits_to_the_last_word_and_no_more() -> None:
    here, there = pair()
    for _ in range(3):
        here.send(bytes(PAGE - 16), 0.0)
        here.send(b"", 0.0)
        with pytest.raises(BacklogError, match="left no room for 0 bytes within 0 s"):
            here.send(b"", 0.0)
        assert there.receive() == bytes(PAGE - 16)
        here.send(b"x", 0.0)
        assert [there.receive(), there.receive()] == [b"", b"x"]
    here.close()
    there.close()


def test_a_full_ring_waits_for_its_reader() -> None:
    here, there = pair()
    frames = [bytes([number]) * 1000 for number in range(64)]
    received: list[bytes | None] = []

    def read() -> None:
        for _ in frames:
            time.sleep(0.001)
            received.append(there.receive(10.0))

    thread = threading.Thread(target=read)
    thread.start()
    for frame in frames:
        here.send(frame, 10.0)
    thread.join()
    assert received == frames
    here.close()
    there.close()


def test_a_full_ring_whose_reader_has_gone_is_an_error_at_once() -> None:
    here, there = pair()
    here.send(bytes(4000))
    there.close()
    with pytest.raises(PeerClosedError, match="closed or died"):
        here.send(bytes(4000), 600.0)
    here.close()


def test_what_was_sent_before_the_end_is_received_after_it() -> None:
    here, there = pair()
    there.send(b"one")
    there.send(b"two")
    there.close()
    assert not here.is_alive()
    assert here.receive(None) == b"one"
    assert here.receive(0.0) == b"two"
    for timeout in (0.0, 1.0, None):
        with pytest.raises(PeerClosedError, match="closed or died"):
            here.receive(timeout)
    here.close()


def test_closing_in_another_thread_ends_a_wait() -> None:
    here, there = pair()
    ended: list[str] = []

    def wait() -> None:
        with pytest.raises(PeerClosedError) as caught:
            here.receive(None)
        ended.append(str(caught.value))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    here.close()
    thread.join(10.0)
    assert ["this side" in words for words in ended] == [True]
    there.close()


def test_the_memory_is_private_and_cannot_be_shrunk() -> None:
    fresh = SharedMemoryTransport.create(PAGE)
    descriptor = fresh.peer_descriptors[0]
    assert os.fstat(descriptor).st_mode & 0o777 == 0o600
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    fresh.close()


def test_strange_descriptors_are_refused() -> None:
    read, write = os.pipe()
    with pytest.raises(TransportError, match="no shared memory transport"):
        SharedMemoryTransport.attach(read, write)
    os.close(read)
    os.close(write)
    segment = os.memfd_create("test")
    os.write(segment, bytes(8192))
    fresh = SharedMemoryTransport.create(PAGE)
    with pytest.raises(TransportError, match="made by something else"):
        SharedMemoryTransport.attach(segment, fresh.peer_descriptors[1])
    fresh.close()
    os.close(segment)


@pytest.mark.parametrize("capacity", [0, 63, (1 << 32) + 1])
def test_a_capacity_out_of_range_is_refused(capacity: int) -> None:
    with pytest.raises(ConfigError, match=f"a ring of {capacity} bytes"):
        SharedMemoryTransport.create(capacity)


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:forethought-transport")


def test_nothing_is_left_of_closed_transports() -> None:
    gc.collect()
    descriptors, shared = len(os.listdir("/proc/self/fd")), sorted(os.listdir("/dev/shm"))
    mapped = mappings()
    for _ in range(50):
        here, there = pair()
        here.send(b"x")
        there.receive(1.0)
        assert mappings() == mapped + 2
        here.close()
        there.close()
        del here, there
    assert mappings() == mapped
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert sorted(os.listdir("/dev/shm")) == shared


def test_a_waiting_side_sleeps() -> None:
    here, there = pair(spin=200e-6)
    began = time.thread_time()
    assert here.receive(1.0) is None
    assert time.thread_time() - began < 0.05
    here.close()
    there.close()


def test_sides_on_one_core_never_ask_in_vain() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        here, there = pair(spin=60.0)
        began = time.thread_time()
        assert here.receive(0.5) is None
        assert time.thread_time() - began < 0.1
        here.close()
        there.close()
    finally:
        os.sched_setaffinity(0, allowed)


# Threads


def test_a_thread_that_raises_is_named() -> None:
    transport = ThreadTransport(Echo)
    transport.wait_until_ready()
    transport.send(b"!raise")
    with pytest.raises(PeerClosedError, match="RuntimeError: told to raise"):
        transport.receive(10.0)
    assert not transport.is_alive()
    with pytest.raises(PeerClosedError, match="RuntimeError: told to raise"):
        transport.send(b"x")
    transport.close()


def test_a_thread_that_cannot_start_says_why() -> None:
    transport = ThreadTransport(lambda: refuse("no model here"))
    with pytest.raises(ArtefactError, match="the draft thread could not start: no model here"):
        transport.wait_until_ready()
    transport.close()
    transport = ThreadTransport(break_down)
    with pytest.raises(PeerClosedError, match="made of cheese"):
        transport.wait_until_ready()
    transport.close()


def test_a_thread_runs_in_its_setting_and_ends_with_its_transport() -> None:
    inside: list[str] = []

    class Setting:
        def __enter__(self) -> None:
            inside.append(threading.current_thread().name)

        def __exit__(self, *_: object) -> None:
            inside.append("left")

    transport = ThreadTransport(Echo, setting=Setting)
    transport.wait_until_ready()
    assert inside == ["forethought-draft"]
    del transport
    gc.collect()
    assert inside == ["forethought-draft", "left"]
    assert "forethought-draft" not in [thread.name for thread in threading.enumerate()]


def test_a_thread_that_takes_nothing_is_a_backlog() -> None:
    stuck, release = threading.Event(), threading.Event()

    class Stuck(Echo):
        def handle(self, frame: bytes) -> list[bytes]:
            stuck.set()
            release.wait(60.0)
            return []

    transport = ThreadTransport(Stuck, max_waiting=4)
    transport.wait_until_ready()
    transport.send(b"x")
    limit = time.monotonic() + 10.0
    while not stuck.is_set():
        assert time.monotonic() < limit
    for _ in range(4):
        transport.send(b"x")
    with pytest.raises(BacklogError, match="none within"):
        transport.send(b"x", 0.01)
    release.set()
    transport.close()


# torch.distributed

RANK = """
import json, os, sys, threading
from datetime import timedelta
import torch.distributed as dist
from forethought.decode.transports.transport import FrameSizeError, PeerClosedError
from forethought.decode.transports.serving import await_speculator, serve_speculator
from forethought.decode.transports.torch_distributed import TorchDistributedTransport, exchange_groups
from tests.decode.peers import Echo

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
facts = {}
for closing in (True, False):
    to_draft, to_target = exchange_groups(0, 1)
    groups = (to_draft, to_target) if rank == 0 else (to_target, to_draft)
    transport = TorchDistributedTransport(1 - rank, *groups, slot=256, max_frame=1 << 21)
    if rank == 1:
        serve_speculator(transport, Echo)
        transport.close()
        continue
    transport.note_round_trip(await_speculator(transport, 60.0))
    sizes = [0, 1, 247, 248, 249, 256, 5000, 1 << 20, 40]
    frames = [bytes([size % 251]) * size for size in sizes]
    for frame in frames:
        transport.send(frame)
    facts["echoed"] = [transport.receive(60.0) == frame for frame in frames]
    facts["round trip"] = transport.capabilities.round_trip
    facts["none"] = transport.receive(0.01)
    try:
        transport.send(bytes((1 << 21) + 1))
    except FrameSizeError as error:
        facts["too large"] = str(error)
    if closing:
        transport.close()
        facts["listening"] = [thread.name for thread in threading.enumerate() if "listener" in thread.name]
        continue
    transport.send(b"!kill")
    try:
        facts["after the kill"] = transport.receive(60.0)
    except PeerClosedError as error:
        facts["after the kill"] = str(error)
    facts["alive"] = transport.is_alive()
    try:
        transport.send(b"x")
    except PeerClosedError as error:
        facts["send"] = str(error)
    transport.close()
print(json.dumps(facts), flush=True)
# The other rank is dead: a process group cannot be taken apart alone.
os._exit(0)
"""


def test_two_ranks_over_gloo(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK]
    environment = os.environ | {"PYTHONPATH": PYTHON_PATH, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    try:
        (output, errors), _ = (rank.communicate(timeout=120) for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    assert ranks[0].returncode == 0, errors.decode()
    facts = json.loads(output)
    assert facts["echoed"] == [True] * 9
    assert facts["round trip"] > 0
    assert facts["none"] is None
    assert facts["listening"] == []
    assert "2097153 bytes exceeds" in facts["too large"]
    assert "closed or died" in facts["after the kill"]
    assert facts["alive"] is False
    assert "send" in facts
    assert ranks[1].returncode == -9


# Chaos, with which other tests shake what stands on transports


def run_chaos(chaos: Chaos, seed: int) -> tuple[list[bytes], dict[str, int]]:
    transport = ChaosTransport(InProcessTransport(Echo()), chaos, seed)
    received: list[bytes] = []
    for number in range(200):
        transport.send(b"%03d" % number)
        frame = transport.receive(0.0)
        received += [] if frame is None else [frame]
    for _ in range(100):
        frame = transport.receive(0.0)
        received += [] if frame is None else [frame]
    return received, dict(transport.mishaps)


def test_chaos_follows_its_seed() -> None:
    sent = [b"%03d" % number for number in range(200)]
    assert run_chaos(Chaos(), 0) == (sent, {})
    every = Chaos(drop=0.1, duplicate=0.1, delay=0.1, reorder=0.1, damage=0.1)
    assert run_chaos(every, 1) == run_chaos(every, 1)
    assert run_chaos(every, 1) != run_chaos(every, 2)
    assert set(run_chaos(every, 1)[1]) == {"drop", "duplicate", "delay", "reorder", "damage"}


@pytest.mark.parametrize(
    ("chaos", "check"),
    [
        (Chaos(drop=0.2), lambda got, sent: got == sorted(got) and set(got) < set(sent)),
        (Chaos(duplicate=0.2), lambda got, sent: set(got) == set(sent) and len(got) > len(sent)),
        (Chaos(delay=0.2), lambda got, sent: got != sent and sorted(got) == sent),
        (Chaos(reorder=0.2), lambda got, sent: got != sent and sorted(got) == sent),
        (Chaos(damage=0.2), lambda got, sent: len(got) == len(sent) and set(got) != set(sent)),
    ],
    ids=["drop", "duplicate", "delay", "reorder", "damage"],
)
def test_chaos_does_what_it_is_asked(chaos: Chaos, check: Callable[[list[bytes], list[bytes]], bool]) -> None:
    received, mishaps = run_chaos(chaos, 3)
    assert check(received, [b"%03d" % number for number in range(200)]), mishaps


def test_chaos_closes() -> None:
    transport = ChaosTransport(InProcessTransport(Echo()), Chaos(close_after=4), 0)
    for _ in range(2):
        transport.send(b"x")
        transport.receive()
    with pytest.raises(PeerClosedError):
        transport.send(b"x")
    assert not transport.is_alive()
