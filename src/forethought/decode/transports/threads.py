"""The draft in a thread of the target's process, on a GPU in a stream of its own; the two share a Python lock.

That lock is free while either side computes in native code, so on a CPU this works where the models' kernels take most
of the time; a process of its own wins nothing back only where there is no second core. On one GPU the two streams share
memory and processors, and the draft fills what the target leaves idle.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import TracebackType

import torch

from forethought.decode.transports.lane import Lane
from forethought.decode.transports.serving import await_speculator, serve_speculator
from forethought.decode.transports.transport import (
    SEND_SECONDS,
    BacklogError,
    Capabilities,
    Frame,
    FrameHandler,
    PeerClosedError,
    Transport,
    closed_here,
    peer_closed,
    size_checked,
)

_NAME = "thread"
_MAX_FRAME = 1 << 30
_MAX_WAITING = 4096
_ROOM_POLL_SECONDS = 1e-4
_JOIN_SECONDS = 5.0

Setting = Callable[[], AbstractContextManager[object]]


class ThreadTransport:
    """The target's side of a draft that runs in a thread, which is started at once.

    `build` makes the handler in that thread, `setting` a block for the thread to run in (see `stream_setting`).
    `wait_until_ready`, or else the first frame, waits for both. Closing waits for the unit of work under way. An
    exception that ends the thread is named by the errors that follow.
    """

    def __init__(
        self,
        build: Callable[[], FrameHandler],
        *,
        setting: Setting = nullcontext,
        max_waiting: int = _MAX_WAITING,
    ) -> None:
        there, back = Lane(max_waiting), Lane(max_waiting)
        self._is_ready = False
        self._end, self._crash = _End(there, back), _Crash()
        target_side = _End(back, there)
        self._thread = threading.Thread(
            target=_run, args=(target_side, self._crash, build, setting), name="forethought-draft", daemon=True
        )
        self._thread.start()
        # Also at the interpreter's end, which would otherwise stop the thread in the middle of native code.
        self._stop = weakref.finalize(self, _stop, self._end, self._thread)

    @property
    def capabilities(self) -> Capabilities:
        """What this transport is."""
        return self._end.capabilities

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Wait until the handler is built, and measure the round trip.

        Raises:
            TransportError: it was not built in time, or the thread ended.
            InputError: the handler could not be built from what it was given; the error is of the kind it raised.
        """
        if self._is_ready:
            return
        try:
            self._end.round_trip = await_speculator(self._end, timeout, who="draft thread")
        except PeerClosedError as error:
            raise self._explained(error) from self._crash.error
        self._is_ready = True

    def send(self, frame: Frame, timeout: float = SEND_SECONDS) -> None:
        """Copy a frame to the thread.

        Raises:
            FrameSizeError: the frame exceeds 1 GiB.
            BacklogError: too many frames wait and the thread took none in time.
            PeerClosedError: the thread has ended, or the transport was closed.
        """
        self.wait_until_ready()
        try:
            self._end.send(frame, timeout)
        except PeerClosedError as error:
            raise self._explained(error) from self._crash.error

    def receive(self, timeout: float | None = 0.0) -> bytes | None:
        """Return the next frame, or None where none comes within `timeout` seconds.

        Raises:
            PeerClosedError: the thread has ended and all its frames were returned, or the transport was closed.
        """
        self.wait_until_ready()
        try:
            return self._end.receive(timeout)
        except PeerClosedError as error:
            raise self._explained(error) from self._crash.error

    def poll(self) -> bool:
        """Return whether a frame is there to be received."""
        return self._end.poll()

    def is_alive(self) -> bool:
        """Return whether the thread listens."""
        return self._end.is_alive()

    def close(self) -> None:
        """End the thread after its unit of work."""
        self._stop()

    def _explained(self, error: PeerClosedError) -> PeerClosedError:
        crash = self._crash.error
        return error if crash is None else PeerClosedError(f"the draft thread ended: {type(crash).__name__}: {crash}")


def stream_setting(device: torch.device | str) -> Setting:
    """Return the setting for a draft on a GPU: inside, work goes to a stream of its own of the lowest priority.

    The target's own stream should have a higher one: `torch.cuda.Stream(device, priority=-1)`.
    """

    def setting() -> AbstractContextManager[object]:
        # Streams with a priority below 0 go first; 0 is the lowest there is.
        return torch.cuda.stream(torch.cuda.Stream(device, priority=0))

    return setting


class _End:
    """One side of a pair of lanes."""

    def __init__(self, outgoing: Lane, incoming: Lane) -> None:
        self.round_trip: float | None = None
        self._outgoing, self._incoming = outgoing, incoming
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        return replace(Capabilities(_NAME, True, False, False, _MAX_FRAME), round_trip=self.round_trip)

    def send(self, frame: Frame, timeout: float = SEND_SECONDS) -> None:
        payload = bytes(size_checked(frame, _MAX_FRAME))
        deadline = time.monotonic() + timeout
        while True:
            if not self.is_alive():
                raise self._gone()
            if self._outgoing.has_room:
                self._outgoing.put(payload)
                return
            if time.monotonic() >= deadline:
                raise BacklogError(f"{_MAX_WAITING} frames wait and the other side took none within {timeout:g} s")
            time.sleep(_ROOM_POLL_SECONDS)

    def receive(self, timeout: float | None = 0.0) -> bytes | None:
        if self._closed:
            raise self._gone()
        frame = self._incoming.take(timeout)
        if frame is None and self._incoming.is_closed:
            frame = self._incoming.take(0.0)
            if frame is None:
                raise self._gone()
        return frame

    def poll(self) -> bool:
        return not self._closed and not self._incoming.is_empty

    def is_alive(self) -> bool:
        return not (self._incoming.is_closed or self._outgoing.is_closed)

    def close(self) -> None:
        self._closed = True
        self._outgoing.close()
        self._incoming.close()

    def _gone(self) -> PeerClosedError:
        return closed_here(_NAME) if self._closed else peer_closed(_NAME)


class _Crash:
    """Keeps the exception that leaves its block, instead of letting it through: nobody is above in a thread."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.error = error
        return True


def _run(end: Transport, crash: _Crash, build: Callable[[], FrameHandler], setting: Setting) -> None:
    with crash:
        try:
            with setting():
                serve_speculator(end, build)
        finally:
            end.close()


def _stop(end: _End, thread: threading.Thread) -> None:
    end.close()
    if thread is not threading.current_thread():
        thread.join(_JOIN_SECONDS)
