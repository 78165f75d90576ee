"""Counting semaphores of the C library in memory that two processes share.

Python has no atomic operations and promises no order of memory accesses between processes. POSIX does for semaphores:
what one process wrote before `sem_post` is seen by the one whose `sem_wait` took that post, on every processor.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from typing import Any

from forethought.decode.transports.transport import TransportError

_MONOTONIC = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Semaphore:
    """A semaphore at `offset` of a shared buffer, which it keeps alive: 32 bytes, set to 0 by `create`."""

    def __init__(self, buffer: ctypes.Array[ctypes.c_char], offset: int, *, create: bool) -> None:
        quick, self._wait_until = _library()
        self._buffer = buffer
        self._address = ctypes.c_void_p(ctypes.addressof(buffer) + offset)
        self._post, self._try_wait = quick.sem_post, quick.sem_trywait
        self._get_value = quick.sem_getvalue
        if create and quick.sem_init(self._address, 1, 0) != 0:
            raise TransportError("the C library refused a semaphore shared between processes")

    def post(self) -> None:
        """Add one, and wake whoever waits."""
        self._post(self._address)

    def try_take(self) -> bool:
        """Take one away if there is one."""
        return self._try_wait(self._address) == 0

    def is_positive(self) -> bool:
        """Return whether there is one to be taken."""
        value = ctypes.c_int()
        self._get_value(self._address, ctypes.byref(value))
        return value.value > 0

    def take(self, timeout: float) -> bool:
        """Take one away, asleep for at most `timeout` seconds; false where none came or a signal did."""
        until, nanoseconds = divmod(time.monotonic_ns() + int(timeout * 1e9), 1_000_000_000)
        return self._wait_until(self._address, _MONOTONIC, ctypes.byref(_Timespec(until, nanoseconds))) == 0


@functools.cache
def _library() -> tuple[Any, Any]:
    """The C library for calls that return at once (they keep Python's lock), and its timed wait (which does not)."""
    if os.name != "posix":
        raise TransportError("shared memory between processes needs a POSIX system; use the transport thread")
    quick, slow = ctypes.PyDLL(None), ctypes.CDLL(None)
    wait_until = getattr(slow, "sem_clockwait", None)
    if wait_until is None:
        raise TransportError("this C library has no sem_clockwait (glibc has since 2.30); use the transport thread")
    for function in (quick.sem_post, quick.sem_trywait):
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_int
    quick.sem_init.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint]
    quick.sem_getvalue.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]
    wait_until.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Timespec)]
    return quick, wait_until
