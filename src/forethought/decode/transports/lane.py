"""Frames on their way from one thread to another of the same process."""

from __future__ import annotations

import queue


class Lane:
    """A first-in, first-out queue of at most `limit` frames that either end can close; what is in it stays readable."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether no further frame will come."""
        return self._closed

    @property
    def has_room(self) -> bool:
        """Whether a frame may be put."""
        return self._frames.qsize() < self._limit

    @property
    def is_empty(self) -> bool:
        """Whether no frame waits; a closed lane holds one mark that is none."""
        return self._frames.qsize() <= self._closed

    def put(self, frame: bytes) -> None:
        """Add a frame."""
        self._frames.put(frame)

    def take(self, timeout: float | None) -> bytes | None:
        """Return the next frame, or None where none comes within `timeout` seconds or before the lane is closed."""
        try:
            frame = self._frames.get(timeout != 0.0, timeout)
        except queue.Empty:
            return None
        if frame is None:
            # The mark stays, so that whoever asks next does not wait either.
            self._frames.put(None)
        return frame

    def close(self) -> None:
        """Wake whoever waits; closing twice is no error."""
        if not self._closed:
            self._closed = True
            self._frames.put(None)
