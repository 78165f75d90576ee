"""A ring of frames in shared memory, written by one process and read by one other.

A frame is its length in eight bytes, then its bytes, padded to eight. Two semaphores count frames written and frames
read; each side knows from them how far the other has come, since frames are read in the order they are written in. So
nothing but the semaphores is ever touched by both sides at a time.
"""

from __future__ import annotations

import struct
from collections import deque

from forethought.decode.transports.semaphore import Semaphore
from forethought.decode.transports.transport import TransportError

_LENGTH = struct.Struct("<Q")
_WORD = _LENGTH.size
_RECLAIMED_PER_WRITE = 4


def record_size(num_bytes: int) -> int:
    """Return what a frame of `num_bytes` takes up in a ring."""
    return _WORD + -(-num_bytes // _WORD) * _WORD


class RingWriter:
    """The writing end; `data` is the whole ring, a multiple of eight bytes."""

    def __init__(self, data: memoryview, filled: Semaphore, freed: Semaphore) -> None:
        self.freed = freed
        self._data, self._filled = data, filled
        self._offset = 0
        self._free = len(data)
        self._sizes: deque[int] = deque()

    @property
    def max_frame(self) -> int:
        """The longest frame in bytes."""
        return len(self._data) - _WORD

    def write(self, frame: memoryview) -> bool:
        """Write a frame that is no longer than `max_frame`; false, and nothing written, where there is no room."""
        size = record_size(len(frame))
        for _ in range(_RECLAIMED_PER_WRITE):
            self._reclaim()
        while self._free < size:
            if not self._reclaim():
                return False
        _LENGTH.pack_into(self._data, self._offset, len(frame))
        start = self._offset + _WORD
        head = min(len(frame), len(self._data) - start)
        self._data[start : start + head] = frame[:head]
        if head < len(frame):
            self._data[: len(frame) - head] = frame[head:]
        self._offset = (self._offset + size) % len(self._data)
        self._free -= size
        self._sizes.append(size)
        # Last: from here on the frame is the reader's.
        self._filled.post()
        return True

    def took_freed(self) -> None:
        """Note that a frame was read, after `freed` was taken from outside."""
        self._free += self._sizes.popleft()

    def _reclaim(self) -> bool:
        if not self._sizes or not self.freed.try_take():
            return False
        self.took_freed()
        return True


class RingReader:
    """The reading end; `read` follows each taking of `filled`."""

    def __init__(self, data: memoryview, filled: Semaphore, freed: Semaphore) -> None:
        self.filled = filled
        self._data, self._freed = data, freed
        self._offset = 0

    def read(self) -> bytes:
        """Return a copy of the next frame and leave its place to the writer.

        Raises:
            TransportError: the ring holds nonsense.
        """
        (length,) = _LENGTH.unpack_from(self._data, self._offset)
        size = record_size(length)
        if size > len(self._data):
            raise TransportError(f"the ring is damaged: a frame of {length} bytes cannot be in {len(self._data)}")
        start = self._offset + _WORD
        head = min(length, len(self._data) - start)
        if head == length:
            frame = bytes(self._data[start : start + length])
        else:
            frame = b"".join((self._data[start:], self._data[: length - head]))
        self._offset = (self._offset + size) % len(self._data)
        self._freed.post()
        return frame
