"""Many independent tasks over local worker processes, or over the machines of a Ray cluster, with the same function.

Each task writes its own run directory under one root. A killed worker's task is tried again in its own directory, and
finished tasks are not run again, so that the same call after any interruption goes on where the last one stopped.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forethought.core import files
from forethought.core.errors import ConfigError, InterruptedRunError, TaskError, unknown_name
from forethought.core.progress import Progress
from forethought.train.interrupt import stop_requests
from forethought.train.task import PACKAGE, Job, Report, plan

JSON = bool | int | float | str | list[Any] | dict[str, Any] | None
Outcomes = Generator[tuple[Job, str | None], None, None]

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 30.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Fleet:
    """How jobs are spread: how many at a time, attempts after the first, threads each, and the cluster to join."""

    workers: int
    retries: int
    threads: int
    address: str | None


def fan_out(
    task: str,
    settings: Sequence[Mapping[str, JSON]],
    *,
    root: Path | str,
    workers: int = 2,
    backend: str = "local",
    retries: int = 2,
    progress: Progress | None = None,
    threads_per_worker: int | None = None,
    allow: Sequence[str] = (PACKAGE,),
    address: str | None = None,
) -> list[Path]:
    """Run a task once for each of the settings and return the run directories in the order of the settings.

    The task "package.module:function" is called as function(run directory, settings) and leaves a result.json there; it
    opens its run with exists="resume". Its name must lie inside a package of `allow`, because settings and names are
    data, and data must not choose arbitrary code. A run is named by the key "name", or by a digest of its settings; its
    log is NAME.log beside it. Crashes, signals, a full disk and interruptions are tried again `retries` times, any
    other error of this library is final. `address` names a Ray cluster, whose machines must share the root.

    Raises:
        ConfigError: the task, the settings, the numbers or the backend cannot be used.
        TaskError: tasks failed; each is named with its log. All others were brought to their end first.
        InterruptedRunError: SIGINT or SIGTERM came; the same call goes on from there.
        MissingExtraError: the backend is ray and Ray is not installed.
    """
    if backend not in BACKENDS:
        raise unknown_name("fan-out backend", backend, BACKENDS)
    if workers < 1 or retries < 0 or (threads_per_worker is not None and threads_per_worker < 1):
        raise ConfigError(
            f"workers {workers}, retries {retries}, threads {threads_per_worker}: give at least 1, 0 and 1"
        )
    root = Path(root).absolute()
    jobs = plan(task, settings, root=root, allow=allow)
    files.make_directory(root)
    open_jobs = [job for job in jobs if not job.finished()]
    threads = threads_per_worker or max(1, _cores() // workers)
    fleet = Fleet(workers, retries, threads, address)
    failed = _watch(BACKENDS[backend], open_jobs, fleet, progress, done=len(jobs) - len(open_jobs))
    if failed:
        details = "; ".join(f"{job.name}: {error} (log: {job.log})" for job, error in failed)
        raise TaskError(
            f"{len(failed)} of {len(jobs)} tasks failed: {details}. The finished ones are kept in {root}; "
            "mend the cause and make the same call again"
        )
    return [Path(job.directory) for job in jobs]


def _watch(
    backend: Backend, jobs: list[Job], fleet: Fleet, progress: Progress | None, *, done: int
) -> list[tuple[Job, str]]:
    failures: dict[str, str] = {}
    total = done + len(jobs)
    if jobs:
        with stop_requests() as stop:
            for job, error in backend(jobs, fleet, lambda: stop.requested):
                done += 1
                if error is not None:
                    failures[job.name] = error
                if progress is not None:
                    progress.update(done, failed=len(failures) or None)
        if stop.requested and done < total:
            raise InterruptedRunError(
                f"interrupted after {done} of {total} tasks; the others were saved, make the same call again to go on"
            )
    return [(job, failures[job.name]) for job in jobs if job.name in failures]


@dataclass
class _Attempt:
    job: Job
    process: subprocess.Popen[bytes]
    number: int
    report: bytes = field(default=b"")

    def ended(self) -> bool:
        """Say whether the worker is dead; what it started dies with it, before its process id can be given anew."""
        if self.process.returncode is not None:
            return True
        if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        self.kill_group()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                self.report = pipe.read() if pipe.readable() else self.report
                with suppress(BrokenPipeError):
                    pipe.close()
        return True

    def ask_to_stop(self) -> None:
        """Ask the worker alone: what it started may be what it needs in order to save."""
        if self.process.returncode is None:
            os.kill(self.process.pid, signal.SIGTERM)

    def kill_group(self) -> None:
        """End the worker and whatever it started; its process id is its own until it was waited for."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def outcome(self) -> Report:
        """Return how an ended attempt came out; a worker that left no report crashed."""
        status = self.process.returncode
        if self.report.endswith(b"\n"):
            return Report.from_json(self.report.decode())
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"crashed with exit status {status}"
        return Report(how, retry=True)


def _local(jobs: list[Job], fleet: Fleet, stopped: Callable[[], bool]) -> Outcomes:
    waiting = deque((job, 1) for job in jobs)
    running: list[_Attempt] = []
    with _no_survivors(running):
        while (waiting or running) and not stopped():
            while waiting and len(running) < fleet.workers:
                job, number = waiting.popleft()
                running.append(_start(job, number, fleet.threads))
            ended = [attempt for attempt in running if attempt.ended()]
            for attempt in ended:
                running.remove(attempt)
                report = attempt.outcome()
                if report.retry and attempt.number <= fleet.retries:
                    waiting.appendleft((attempt.job, attempt.number + 1))
                else:
                    yield attempt.job, report.error
            if not ended:
                time.sleep(_POLL_SECONDS)


def _start(job: Job, number: int, threads: int) -> _Attempt:
    environment = os.environ | {name: str(threads) for name in _THREAD_VARIABLES}
    with files.open_write(job.log, append=True) as log:
        log.write(f"attempt {number} of {job.task}\n".encode())
        log.flush()
        # -P keeps the current directory off the import path: a file that lies there must not be taken for a module.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "forethought.train.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    attempt = _Attempt(job, process, number)
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.write(job.to_json().encode() + b"\n")
            process.stdin.flush()
    return attempt


@contextmanager
def _no_survivors(running: list[_Attempt]) -> Generator[None, None, None]:
    """However the block ends, ask the workers that still run to save and stop, and after a while make them."""
    try:
        yield
    finally:
        for attempt in running:
            attempt.ask_to_stop()
        try:
            _await(running, seconds=_GRACE_SECONDS)
        finally:
            for attempt in running:
                attempt.kill_group()
            _await(running, seconds=math.inf)


def _await(running: list[_Attempt], *, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not all([attempt.ended() for attempt in running]) and time.monotonic() < limit:
        time.sleep(_POLL_SECONDS)


def _ray(jobs: list[Job], fleet: Fleet, stopped: Callable[[], bool]) -> Outcomes:
    from forethought.train.cluster import perform_on_cluster

    return perform_on_cluster(
        jobs,
        workers=fleet.workers,
        retries=fleet.retries,
        threads=fleet.threads,
        address=fleet.address,
        stopped=stopped,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Backend = Callable[[list[Job], Fleet, Callable[[], bool]], Outcomes]
BACKENDS: dict[str, Backend] = {"local": _local, "ray": _ray}
