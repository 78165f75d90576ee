"""The process around one attempt at a job: `python -m forethought.train.worker`, with the job as JSON on its input.

The input stays open for as long as the parent lives. When it ends, the parent is gone, and the worker stops too: first
as on SIGTERM, so that a training run is saved, then for good. Nothing that a parent starts can outlive it for long.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import BinaryIO

from forethought.train.task import Job, perform

GRACE_SECONDS = 30.0


def main() -> None:
    """Read a job from standard input, perform it, and write one line with its report to standard output.

    What the task itself prints goes to standard error, which the parent keeps as the task's log.
    """
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    source = os.fdopen(os.dup(0), "rb", buffering=0)
    job = Job.from_json(_line(source))
    _detach_input()
    threading.Thread(target=_stop_with_parent, args=(source,), name="lifeline", daemon=True).start()
    report = perform(job)
    if report.error is not None:
        sys.stderr.write(f"{report.error}\n")
    reports.write(report.to_json() + "\n")
    reports.close()


def _line(source: BinaryIO) -> str:
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = source.read(1 << 16)
        if not piece:
            break
        line += piece
    return line.decode()


def _detach_input() -> None:
    """Give the task an empty input, so that neither it nor a process it starts holds on to the parent's pipe."""
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)


def _stop_with_parent(source: BinaryIO) -> None:
    while source.read(1 << 10):
        pass
    # A parent of this library makes the worker the head of a group, to which all that it starts belongs.
    head = os.getpgrp() == os.getpid()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if head:
            os.killpg(os.getpgrp(), number)
        else:
            os.kill(os.getpid(), number)
        time.sleep(GRACE_SECONDS)


if __name__ == "__main__":
    main()
