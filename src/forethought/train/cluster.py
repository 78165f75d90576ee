"""Jobs over a Ray cluster: one that runs already, or a small local one that lives as long as the call."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

from forethought.core import files
from forethought.core.errors import TaskError
from forethought.core.extras import require
from forethought.train.task import Job, Report, perform

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 30.0
_STORE_BYTES = 80 << 20
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def perform_on_cluster(
    jobs: list[Job], *, workers: int, retries: int, threads: int, address: str | None, stopped: Callable[[], bool]
) -> Generator[tuple[Job, str | None], None, None]:
    """Yield each job with None or its error as it ends; Ray tries again what crashed, was killed, or may recover.

    `address` is that of a running cluster, by default the one in RAY_ADDRESS; without either a local one is started.
    Every attempt has a worker process of its own, and Ray gives it `threads` cores and OpenMP threads.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    ray: Any = require("ray", extra="cluster", purpose="fanning out over a cluster")
    # Ray's own thread prints messages to standard output, which belongs to the caller.
    with redirect_stdout(sys.stderr), _joined(ray, address or os.environ.get("RAY_ADDRESS"), cores=workers * threads):
        remote = ray.remote(num_cpus=threads, max_retries=retries, retry_exceptions=True, max_calls=1)(attempt)
        waiting, running = deque(jobs), dict[Any, Job]()
        try:
            while (waiting or running) and not stopped():
                while waiting and len(running) < workers:
                    job = waiting.popleft()
                    running[remote.remote(job.to_json())] = job
                for reference in ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)[0]:
                    yield running.pop(reference), _error(ray, reference)
        finally:
            _cancel(ray, list(running))


def attempt(line: str) -> str:
    """Perform the job of one line of JSON in this Ray worker and return its report as one line of JSON.

    Raises:
        TaskError: the attempt failed in a way that another one may not; Ray then makes another one.
    """
    job = Job.from_json(line)
    with (
        files.open_write(job.log, append=True) as raw,
        io.TextIOWrapper(raw, encoding="utf-8", write_through=True) as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        log.write(f"attempt of {job.task} on Ray\n")
        log.flush()
        report = perform(job)
        if report.error is not None:
            log.write(f"{report.error}\n")
    if report.error is not None and report.retry:
        raise TaskError(report.error)
    return report.to_json()


def _error(ray: Any, reference: Any) -> str | None:
    try:
        return Report.from_json(ray.get(reference)).error
    except ray.exceptions.RayTaskError as error:
        return f"{type(error.cause).__name__}: {error.cause}"
    except ray.exceptions.RayError as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _cancel(ray: Any, references: list[Any]) -> None:
    """Interrupt tasks, so that a training run is saved, and end those that go on for too long."""
    if not references:
        return
    for force, seconds in ((False, _GRACE_SECONDS), (True, 5.0)):
        for reference in references:
            ray.cancel(reference, force=force)
        references = ray.wait(references, num_returns=len(references), timeout=seconds)[1]
        if not references:
            return
        time.sleep(_POLL_SECONDS)


@contextmanager
def _joined(ray: Any, address: str | None, *, cores: int) -> Generator[None, None, None]:
    """Join or start a cluster and leave it afterwards; one that the caller joined already is used and left alone."""
    if ray.is_initialized():
        yield
        return
    common = {"log_to_driver": False, "logging_level": logging.ERROR}
    local = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    with _environment(_QUIET), _own_signals():
        ray.init(address=address or "local", **common, **({} if address else local))
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _environment(values: dict[str, str]) -> Generator[None, None, None]:
    """Set variables that are not set, for the processes that a block starts."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            with suppress(KeyError):
                del os.environ[name]


@contextmanager
def _own_signals() -> Generator[None, None, None]:
    """Keep this process's answer to SIGTERM, which ray.init replaces by one that exits at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
