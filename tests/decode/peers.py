"""Handlers of frames for the transports' tests: what stands in a draft's place, in a thread or another process."""

from __future__ import annotations

import os
import signal
import time

from forethought.core.errors import ArtefactError


class Echo:
    """Sends every frame back; a few are orders."""

    def handle(self, frame: bytes) -> list[bytes]:
        if len(frame) > 32:
            return [frame]
        if frame == b"!raise":
            raise RuntimeError("told to raise")
        if frame == b"!kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if frame == b"!three":
            return [b"1", b"2", b"3"]
        if frame.startswith(b"!flood"):
            count, size = (int(number) for number in frame.split()[1:])
            return [bytes([number % 251]) * size for number in range(count)]
        if frame == b"!sleep":
            time.sleep(600.0)
        if frame == b"!facts":
            import torch

            cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
            return [f"{cores} {torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']}".encode()]
        return [frame]

    def work(self) -> bool:
        return False

    def replies(self) -> list[bytes]:
        return []


class Worker:
    """Has a number of units of work to do after each frame, and notes all it does."""

    def __init__(self, units: int) -> None:
        self.notes: list[str] = []
        self._units, self._left, self._done = units, 0, True

    def handle(self, frame: bytes) -> list[bytes]:
        self.notes.append(frame.decode())
        self._left, self._done = self._units, False
        return [f"{frame.decode()}{len(self.notes)}".encode()]

    def work(self) -> bool:
        if self._left == 0:
            return False
        self._left -= 1
        self.notes.append("work")
        return True

    def replies(self) -> list[bytes]:
        """One when all work is done."""
        if self._left or self._done:
            return []
        self._done = True
        return [b"done"]


def echo() -> Echo:
    return Echo()


def refuse(reason: str) -> Echo:
    raise ArtefactError(reason)


def break_down() -> Echo:
    raise RuntimeError("the weights are made of cheese")


def never() -> Echo:
    time.sleep(600.0)
    return Echo()
