"""Both sides in one thread, taking turns: equal calls give equal frames, so this is what the others are held to."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from forethought.decode.transports.transport import (
    SEND_SECONDS,
    Capabilities,
    Frame,
    FrameHandler,
    closed_here,
    size_checked,
)

_MAX_FRAME = 1 << 30


class InProcessTransport:
    """A transport to a handler that is called directly.

    A frame is handled when it is sent. Work ahead is done when the next frame is asked for, after all that was sent in
    between, as a side of its own would that takes in everything there is before it works. `work_limit` is how many
    units of work it gets each time, None for all there are: a small one stands for a side that is always late, 0 for
    one that never prepares anything, nor gives replies that are left to its work. What the handler raises goes through
    to the caller.
    """

    def __init__(self, handler: FrameHandler, *, work_limit: int | None = None, max_frame: int = _MAX_FRAME) -> None:
        self._handler = handler
        self._work_limit = work_limit
        self._replies: deque[bytes] = deque()
        self._has_news = False
        self._closed = False
        self._capabilities = Capabilities("in-process", True, False, True, max_frame, 0.0)

    @property
    def capabilities(self) -> Capabilities:
        """What this transport is."""
        return self._capabilities

    def send(self, frame: Frame, timeout: float = SEND_SECONDS) -> None:
        """Have a frame handled and keep the replies; it never waits.

        Raises:
            FrameSizeError: the frame, or a reply, is larger than `max_frame`.
            PeerClosedError: the transport was closed.
        """
        if self._closed:
            raise closed_here("in-process")
        self._has_news = True
        self._keep(self._handler.handle(bytes(size_checked(frame, self._capabilities.max_frame))))

    def receive(self, timeout: float | None = 0.0) -> bytes | None:
        """Let the handler work ahead on what was sent, and return the next reply; None at once where there is none.

        Raises:
            FrameSizeError: a reply is larger than `max_frame`.
            PeerClosedError: the transport was closed.
        """
        if self._closed:
            raise closed_here("in-process")
        if self._has_news:
            self._has_news = False
            self._work()
        return self._replies.popleft() if self._replies else None

    def poll(self) -> bool:
        """Return whether a reply is there."""
        return bool(self._replies)

    def is_alive(self) -> bool:
        """Return whether the transport is open."""
        return not self._closed

    def close(self) -> None:
        """Drop the replies that were not received."""
        self._closed = True
        self._replies.clear()

    def _work(self) -> None:
        num_units = 0
        while (self._work_limit is None or num_units < self._work_limit) and self._handler.work():
            num_units += 1
        self._keep(self._handler.replies())

    def _keep(self, replies: Sequence[Frame]) -> None:
        self._replies += [bytes(size_checked(reply, self._capabilities.max_frame)) for reply in replies]
