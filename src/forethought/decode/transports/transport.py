"""How frames of bytes pass between the target's side and the draft's; nothing here knows what a frame says.

A transport keeps frames whole and in order. It does not promise that a frame arrives, or that anyone still listens:
whoever waits does so with a deadline, and goes on without drafts when one of the errors below is raised.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from forethought.core.errors import ForethoughtError

Frame: TypeAlias = bytes | bytearray | memoryview

SEND_SECONDS = 1.0
"""How long a sender waits for room by default."""

_PING = bytes(64)
_PING_SECONDS = 10.0


class TransportError(ForethoughtError, ConnectionError):
    """Frames cannot pass; whoever meets one decodes without the other side."""


class PeerClosedError(TransportError):
    """The other side has closed or died, or this side was closed; all frames that had arrived were received."""


class FrameSizeError(TransportError):
    """A frame is larger than the transport takes."""


class BacklogError(TransportError):
    """The other side left no room for a frame in time."""


@dataclass(frozen=True)
class Capabilities:
    """What a transport is: `max_frame` in bytes, `round_trip` in seconds (None: not measured).

    `remote` is true where the other side has an address space of its own, `deterministic` where equal calls give equal
    frames at equal times.
    """

    name: str
    shared_memory: bool
    remote: bool
    deterministic: bool
    max_frame: int
    round_trip: float | None = None


class Transport(Protocol):
    """One side of a two-way connection; one thread at a time may call it."""

    @property
    def capabilities(self) -> Capabilities:
        """What this transport is."""
        ...

    def send(self, frame: Frame, timeout: float = SEND_SECONDS) -> None:
        """Hand over a frame, waiting at most `timeout` seconds for room; the caller may reuse the buffer at once.

        Raises:
            FrameSizeError: the frame is larger than `capabilities.max_frame`.
            BacklogError: there was no room in time; nothing of the frame was sent.
            PeerClosedError: the other side has gone.
        """
        ...

    def receive(self, timeout: float | None = 0.0) -> bytes | None:
        """Return the next frame, or None where none comes within `timeout` seconds (None waits for ever).

        Raises:
            PeerClosedError: the other side has gone and every frame of its was returned.
        """
        ...

    def poll(self) -> bool:
        """Return whether a frame is there to be received."""
        ...

    def is_alive(self) -> bool:
        """Return whether the other side is there; frames may wait even where it is not."""
        ...

    def close(self) -> None:
        """Give back what the connection holds; the other side notices. Closing twice is no error."""
        ...


class FrameHandler(Protocol):
    """What answers frames: the draft's side of an engine, or anything else that speaks in frames."""

    def handle(self, frame: bytes) -> Sequence[Frame]:
        """Take a frame in and return the replies to it."""
        ...

    def work(self) -> bool:
        """Do one unit of what can be done ahead, short enough to wait for; false where nothing is left to do."""
        ...

    def replies(self) -> Sequence[Frame]:
        """Return, once each, the replies that `work` came to."""
        ...


def measure_round_trip(transport: Transport, num_rounds: int = 64) -> float:
    """Return the median time in seconds for a small frame to go and come back; the other side is in `answer_pings`.

    Raises:
        BacklogError: an answer did not come within ten seconds.
        PeerClosedError: the other side has gone.
    """
    times: list[float] = []
    for _ in range(num_rounds):
        began = time.perf_counter()
        transport.send(_PING, _PING_SECONDS)
        if transport.receive(_PING_SECONDS) is None:
            raise BacklogError(f"no answer to a ping within {_PING_SECONDS:g} s; the other side is stuck or overloaded")
        times.append(time.perf_counter() - began)
    transport.send(b"", _PING_SECONDS)
    # The first rounds fault pages in and wake the other side up.
    return statistics.median(times[num_rounds // 4 :])


def answer_pings(transport: Transport, timeout: float) -> None:
    """Send back each frame that comes until an empty one does; `timeout` seconds is the longest wait for one.

    Raises:
        BacklogError: nothing came in time.
        PeerClosedError: the other side has gone.
    """
    while True:
        frame = transport.receive(timeout)
        if frame is None:
            raise BacklogError(f"no ping within {timeout:g} s; the other side is stuck or overloaded")
        if not frame:
            return
        transport.send(frame, timeout)


def size_checked(frame: Frame, max_frame: int) -> memoryview:
    """Return a frame as flat bytes.

    Raises:
        FrameSizeError: it is larger than `max_frame` bytes.
    """
    view = memoryview(frame)
    if view.nbytes > max_frame:
        raise FrameSizeError(
            f"a frame of {view.nbytes} bytes exceeds the transport's {max_frame}; open it with a larger capacity"
        )
    return view.cast("B") if view.nbytes else memoryview(b"")


def peer_closed(name: str) -> PeerClosedError:
    """Build the error of a side that finds the other one gone."""
    return PeerClosedError(f"the other side of the {name} transport has closed or died")


def closed_here(name: str) -> PeerClosedError:
    """Build the error of a call on a transport that was closed on this side."""
    return PeerClosedError(f"this side of the {name} transport was closed; open a new one")
