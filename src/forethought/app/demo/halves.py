"""Two processes side by side: each shows one line, one failure or Ctrl-C ends both, none outlives the first.

The processes are `forethought demo --jobs NAMES OUT`, with one thread each. They claim jobs from both
ends of the list, so that neither waits while there is work. Their standard input is a pipe that the first process
holds: when it ends, however it ends, they hear so and stop.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from forethought.core.errors import InterruptedRunError, TaskError

AS_SECOND = "--jobs"
"""How a second process is started: `forethought demo --jobs NAMES OUT`; no flag for people."""
_GRACE_SECONDS = 30.0
_POLL_SECONDS = 0.1
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def one_thread() -> Generator[None, None, None]:
    """Train on one core for a block, so that one process and two make the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(names: Sequence[str], out: Path, processes: int) -> None:
    """Do jobs in processes of their own, each beginning at another end of the list.

    Raises:
        TaskError: one failed; the others were stopped and saved what they had.
        InterruptedRunError: Ctrl-C; all stopped and saved what they had.
    """
    orders = [list(names), list(reversed(names))]
    board = _Board(processes)
    children = [_Child(number, orders[number % 2], out, board) for number in range(processes)]
    try:
        _wait(children, board)
    except KeyboardInterrupt:
        raise InterruptedRunError(f"{out} was interrupted and saved; run the same command again to go on") from None
    finally:
        _end(children)
        board.close()


def watch_first() -> None:
    """In a second process: stop, as by Ctrl-C, when the first one is gone."""

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


class _Child:
    """One process, its last words, and the thread that hears them."""

    def __init__(self, number: int, names: Sequence[str], out: Path, board: _Board) -> None:
        command = [sys.executable, "-m", "forethought", "demo", AS_SECOND, ",".join(names), str(out)]
        self.number, self.words = number, ""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | dict.fromkeys(_THREADS, "1"),
            # Ctrl-C reaches the first process only, which then asks each of the others once.
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._hear, args=(board,), daemon=True)
        self._thread.start()

    def _hear(self, board: _Board) -> None:
        for line in self.process.stderr or ():
            if line.strip():
                self.words = line.strip()
                board.said.put((self.number, self.words))

    def stop(self) -> None:
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGINT)

    def bury(self, seconds: float) -> None:
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._thread.join(5.0)
        for stream in (self.process.stdin, self.process.stderr):
            if stream is not None:
                stream.close()


class _Board:
    """What the processes last said: a line each on a terminal, else a line whenever one speaks."""

    def __init__(self, count: int) -> None:
        self.said: queue.Queue[tuple[int, str]] = queue.Queue()
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = [SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}")]
            self._bar = Progress(*columns, console=Console(file=sys.stderr), redirect_stdout=False)
            self._bar.start()
            self._tasks = [self._bar.add_task("starting", total=None) for _ in range(count)]

    def show(self) -> None:
        while not self.said.empty():
            number, line = self.said.get()
            if self._bar is None:
                sys.stderr.write(f"[{number + 1}] {line}\n")
                sys.stderr.flush()
            else:
                from rich.markup import escape

                self._bar.update(self._tasks[number], description=escape(line))

    def close(self) -> None:
        self.show()
        if self._bar is not None:
            self._bar.stop()


def _wait(children: Sequence[_Child], board: _Board) -> None:
    while any(child.process.poll() is None for child in children):
        board.show()
        for child in children:
            if child.process.poll() not in (None, 0):
                child.bury(1.0)
                raise TaskError(f"a part of the demo failed: {child.words.removeprefix('forethought: ')}")
        time.sleep(_POLL_SECONDS)
    for child in children:
        if child.process.returncode != 0:
            raise TaskError(f"a part of the demo failed: {child.words.removeprefix('forethought: ')}")


def _end(children: Sequence[_Child]) -> None:
    for child in children:
        child.stop()
    deadline = time.monotonic() + _GRACE_SECONDS
    for child in children:
        child.bury(deadline - time.monotonic())
