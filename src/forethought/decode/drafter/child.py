"""The process around a draft: `python -m forethought.decode.drafter.child`, with its order as JSON on standard input.

The input stays open for as long as the parent lives. When it ends, the parent is gone, and this process ends too.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch

from forethought.decode.transports.serving import serve_speculator
from forethought.decode.transports.shared_memory import SharedMemoryTransport

_GRACE_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Read the order, build what it names, and answer frames until the parent goes or SIGTERM comes."""
    signal.signal(signal.SIGTERM, _end)
    sys.excepthook = _fail
    order = json.loads(_line())
    _end_with_parent(order["parent"], with_thread=order["dies_with_thread"])
    if order["core"] is not None:
        os.sched_setaffinity(0, {order["core"]})
    torch.set_num_threads(order["num_threads"])
    segment, link = order["descriptors"]
    transport = SharedMemoryTransport.attach(segment, link, spin=order["spin"])
    module, _, name = order["build"].partition(":")
    serve_speculator(transport, partial(_build, module, name, order["settings"]))
    _leave(0)


def _build(module: str, name: str, settings: dict[str, Any]) -> Any:
    return getattr(importlib.import_module(module), name)(**settings)


def _line() -> bytes:
    """Read up to the end of the line and no further: what comes after it is the end of the parent."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            _leave(0)
        line += piece
    return bytes(line)


def _end(number: int, frame: FrameType | None) -> None:
    _leave(0)


def _fail(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    # The parent learns of the end by the end itself, and then finds these words.
    sys.__excepthook__(kind, error, traceback)
    _leave(1)


def _leave(status: int) -> NoReturn:
    """End at once: taking the interpreter and torch apart would take longer than all that is left to do."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_with_parent(parent: int, *, with_thread: bool) -> None:
    if with_thread and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    watch = select.poll()
    watch.register(0, select.POLLIN)
    # A process that the parent forked holds on to the input as well, but it is not the parent.
    if hasattr(os, "pidfd_open"):
        # This fails where the kernel has no such call, or the parent is gone already, of which the input tells too.
        with suppress(OSError):
            watch.register(os.pidfd_open(parent), select.POLLIN)
    threading.Thread(target=_watch, args=(watch,), name="lifeline", daemon=True).start()


def _watch(watch: select.poll) -> None:
    watch.poll()
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.kill(os.getpid(), number)
        time.sleep(_GRACE_SECONDS)


if __name__ == "__main__":
    main()
