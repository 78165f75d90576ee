"""Interruption without loss: a first Ctrl-C or SIGTERM asks for a stop at the next safe point, the second is final."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked this process to stop."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Note the request; a second one raises KeyboardInterrupt."""
        if self.requested:
            raise KeyboardInterrupt(f"second {signal.Signals(number).name}")
        self.requested = True


@contextmanager
def stop_requests() -> Generator[StopRequest, None, None]:
    """Catch SIGINT and SIGTERM for a block; outside the main thread, where Python allows no handlers, catch nothing."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            # A handler that was not installed from Python reads as None and cannot be put back as such.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
