"""Two processes, two rings in one nameless piece of memory.

The memory is a memfd: it has no name, only the two processes that hold its descriptor can map it, and it is gone when
both are, however they end. A socket pair carries no data: the kernel closes a dead process's end, and that is how the
other side learns of it at once. A side that waits first asks again and again, since waking a process takes the kernel
some 50 us on a virtual machine, and then sleeps in the kernel. Where both sides may run on the same one core only, it
sleeps at once, for the other cannot write while this one asks.
"""

from __future__ import annotations

import ctypes
import fcntl
import math
import mmap
import os
import socket
import struct
import time
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum

from forethought.core.errors import ConfigError
from forethought.decode.transports.ring import RingReader, RingWriter
from forethought.decode.transports.semaphore import Semaphore
from forethought.decode.transports.transport import (
    SEND_SECONDS,
    BacklogError,
    Capabilities,
    Frame,
    TransportError,
    closed_here,
    peer_closed,
    size_checked,
)

CAPACITY = 8 << 20
"""Bytes of each ring by default; untouched pages cost nothing."""

SPIN_SECONDS = 200e-6
"""How long a waiting side asks before it sleeps by default."""

_NAME = "shared memory"
_HEADER = struct.Struct("<8sQQQ")  # magic, capacity, process ids of the creator and of the other side
_MAGIC = b"frthgtR1"
_PID_OFFSETS = (16, 24)
# Two cache lines apart: processors fetch lines in pairs, and neighbours in a pair would be passed to and fro.
_SEMAPHORE_OFFSETS = tuple(256 + 128 * number for number in range(4))
_DATA_OFFSET = mmap.PAGESIZE
_POLLS_PER_LOOK = 64
# A sleeper looks after the other side this often; asleep it costs a fiftieth of a per cent of a core.
_NAP_SECONDS = 0.02


class _Place(Enum):
    """Where a side may run: on one core, which is the other side's only one too, or is not; or on several."""

    SHARED, OWN, ANY = range(3)


class SharedMemoryTransport:
    """One side; build it with `create`, give `peer_descriptors` to the other process, which calls `attach`.

    `spin` seconds of asking keep a side's answers within microseconds, at the price of a core that long; a side with a
    core of its own may ask for as long as a round lasts.
    """

    def __init__(self, segment: int, link: socket.socket, side: int, spin: float) -> None:
        buffer, data = _map(segment)
        self._segment, self._link, self._spin = segment, link, spin
        self._peer_link: socket.socket | None = None
        struct.pack_into("<Q", data, _PID_OFFSETS[side], os.getpid())
        semaphores = [Semaphore(buffer, offset, create=side == 0) for offset in _SEMAPHORE_OFFSETS]
        capacity = (len(data) - _DATA_OFFSET) // 2
        rings = [data[start : start + capacity] for start in (_DATA_OFFSET, _DATA_OFFSET + capacity)]
        writer = RingWriter(rings[side], *semaphores[2 * side : 2 * side + 2])
        reader = RingReader(rings[1 - side], *semaphores[2 - 2 * side : 4 - 2 * side])
        self._rings: tuple[RingWriter, RingReader] | None = (writer, reader)
        self._peer_pid_at: memoryview | None = data[_PID_OFFSETS[1 - side] :][:8].cast("Q")
        self._place: _Place | None = None
        self._capabilities = Capabilities(_NAME, True, True, False, writer.max_frame)

    @classmethod
    def create(cls, capacity: int = CAPACITY, *, spin: float = SPIN_SECONDS) -> SharedMemoryTransport:
        """Make the memory, with `capacity` bytes each way, and take the first side of it.

        Raises:
            ConfigError: the capacity is too small, or the system has no memfd.
            TransportError: the system refused memory or descriptors.
        """
        if not hasattr(os, "memfd_create"):
            raise ConfigError("shared memory needs Linux (memfd_create); use the transport thread")
        if not 64 <= capacity <= 1 << 32:
            raise ConfigError(f"a ring of {capacity} bytes is out of range; give 64 to 4294967296")
        capacity = -(-capacity // mmap.PAGESIZE) * mmap.PAGESIZE
        with ExitStack() as undo:
            try:
                segment = _make_segment(capacity)
                undo.callback(os.close, segment)
                link, peer_link = (undo.enter_context(end) for end in socket.socketpair())
                transport = cls(segment, link, 0, spin)
            except OSError as error:
                raise TransportError(f"the system refused {2 * capacity} bytes of shared memory: {error}") from error
            undo.pop_all()
        transport._peer_link = peer_link
        return transport

    @classmethod
    def attach(cls, segment: int, link: int, *, spin: float = SPIN_SECONDS) -> SharedMemoryTransport:
        """Take the other side, from the two descriptors of `peer_descriptors`, which the transport then closes itself.

        Raises:
            TransportError: the descriptors are not those of a transport of this version.
        """
        end: socket.socket | None = None
        try:
            end = socket.socket(fileno=link)
            return cls(segment, end, 1, spin)
        except (OSError, ValueError, struct.error) as error:
            if end is not None:
                end.detach()
            raise TransportError(f"descriptors {segment} and {link} are no shared memory transport: {error}") from error

    @property
    def peer_descriptors(self) -> tuple[int, int]:
        """The descriptors of the memory and of the socket that the other process needs, until `release_peer`."""
        if self._peer_link is None:
            raise closed_here(_NAME)
        return self._segment, self._peer_link.fileno()

    def release_peer(self) -> None:
        """Close this process's hold on the other side's end, once that process has it; before, its death is unseen."""
        if self._peer_link is not None:
            self._peer_link.close()
            self._peer_link = None

    @property
    def capabilities(self) -> Capabilities:
        """What this transport is."""
        return self._capabilities

    def note_round_trip(self, seconds: float) -> None:
        """Put a measured round trip among the capabilities."""
        self._capabilities = replace(self._capabilities, round_trip=seconds)

    def send(self, frame: Frame, timeout: float = SEND_SECONDS) -> None:
        """Copy a frame into the ring, waiting at most `timeout` seconds for room.

        Raises:
            FrameSizeError: the frame does not fit the ring.
            BacklogError: the other side made no room in time.
            PeerClosedError: the other side has gone, or this side was closed.
        """
        if self._rings is None:
            raise closed_here(_NAME)
        writer = self._rings[0]
        view = size_checked(frame, writer.max_frame)
        if not self.is_alive():
            raise self._gone()
        if writer.write(view):
            return
        deadline = time.monotonic() + timeout
        while not writer.write(view):
            if self._take(writer.freed, deadline):
                writer.took_freed()
            elif not self.is_alive():
                raise self._gone()
            elif time.monotonic() >= deadline:
                raise BacklogError(
                    f"the other side left no room for {len(view)} bytes within {timeout:g} s; it is stuck or too slow"
                )

    def receive(self, timeout: float | None = 0.0) -> bytes | None:
        """Return the next frame, or None where none comes within `timeout` seconds.

        Raises:
            PeerClosedError: the other side has gone and all its frames were returned, or this side was closed.
        """
        if self._rings is None:
            raise closed_here(_NAME)
        reader = self._rings[1]
        if reader.filled.try_take():
            return reader.read()
        if timeout != 0.0 and self._take(reader.filled, math.inf if timeout is None else time.monotonic() + timeout):
            return reader.read()
        if self.is_alive():
            return None
        # What the other side wrote before it went may have come in between.
        if reader.filled.try_take():
            return reader.read()
        raise self._gone()

    def poll(self) -> bool:
        """Return whether a frame is there to be received."""
        return self._rings is not None and self._rings[1].filled.is_positive()

    def is_alive(self) -> bool:
        """Return whether the other process has its end open."""
        try:
            return self._link.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Close this side's end; the memory goes with the last side, and with the calls that are under way."""
        if self._rings is None:
            return
        # A call under way in another thread holds the mapping by its own references; unmapping it here would crash it.
        self._rings = self._peer_pid_at = None
        self.release_peer()
        self._link.close()
        os.close(self._segment)

    def _take(self, semaphore: Semaphore, deadline: float) -> bool:
        """Take from a semaphore: ask for a while, then sleep; false at the deadline or when the other side is gone."""
        place = self._place = self._place or self._look_around()
        now = time.monotonic()
        asking_until = now if place is _Place.SHARED else min(now + self._spin, deadline)
        while now < asking_until:
            for _ in range(_POLLS_PER_LOOK):
                if semaphore.try_take():
                    return True
            if place is _Place.ANY:
                os.sched_yield()
            now = time.monotonic()
        # Either side may be pinned at any time; here the question costs nothing, since nobody is in a hurry.
        self._place = self._look_around()
        while now < deadline:
            if semaphore.take(min(deadline - now, _NAP_SECONDS)):
                return True
            if not self.is_alive():
                return False
            now = time.monotonic()
        return False

    def _look_around(self) -> _Place:
        own, peer_pid_at = os.sched_getaffinity(0), self._peer_pid_at
        if len(own) > 1 or peer_pid_at is None:
            return _Place.ANY
        try:
            return _Place.SHARED if os.sched_getaffinity(peer_pid_at[0]) == own else _Place.OWN
        except OSError:
            return _Place.ANY

    def _gone(self) -> TransportError:
        return closed_here(_NAME) if self._rings is None else peer_closed(_NAME)


def _make_segment(capacity: int) -> int:
    size = _DATA_OFFSET + 2 * capacity
    segment = os.memfd_create("forethought-transport", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(segment, 0o600)
        os.ftruncate(segment, size)
        # A side that shrank the memory would crash the other one.
        fcntl.fcntl(segment, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        os.pwrite(segment, _HEADER.pack(_MAGIC, capacity, 0, 0), 0)
    except OSError:
        os.close(segment)
        raise
    return segment


def _map(segment: int) -> tuple[ctypes.Array[ctypes.c_char], memoryview]:
    size = os.fstat(segment).st_size
    magic, capacity, *_ = _HEADER.unpack(os.pread(segment, _HEADER.size, 0))
    if magic != _MAGIC or size != _DATA_OFFSET + 2 * capacity:
        raise ValueError("the memory was made by something else, or by another version")
    mapping = mmap.mmap(segment, size)
    return (ctypes.c_char * size).from_buffer(mapping), memoryview(mapping)
