"""The jobs of the tour: what each makes, what it needs, and where it may run.

A job leaves `OUT/jobs/NAME.json` when it is done and is never run again. Whoever locks `OUT/jobs/NAME.lock` does it;
a process that is killed lets go of its lock, and what its job had saved is gone on with.
"""

from __future__ import annotations

import fcntl
import importlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethought.app.demo.settings import DemoConfig
from forethought.core import files
from forethought.core.errors import MissingExtraError
from forethought.core.extras import require

JOBS, SKIPPED = "jobs", "skipped"
EXTRA = "demo"
Work = Callable[[DemoConfig, Path], Mapping[str, Any]]


@dataclass(frozen=True)
class Job:
    """One piece of the tour: its function as module:function, the jobs before it, and the packages it wants.

    alone: it wants all cores, because it measures time; the others take one each and may run side by side.
    """

    place: str
    after: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    alone: bool = False

    def work(self) -> Work:
        """Return the function, imported now."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


_HERE = "forethought.app.demo"
# In the order in which a single process does them; a second one begins with the last that may run beside others.
TABLE: dict[str, Job] = {
    "corpus": Job(f"{_HERE}.text:make_corpus", alone=True),
    "target": Job(f"{_HERE}.text:train_target", after=("corpus",)),
    "draft": Job(f"{_HERE}.text:train_draft", after=("target",)),
    "together": Job(f"{_HERE}.together:train_together", after=("corpus",)),
    "certify": Job(f"{_HERE}.certified:certify_text", after=("corpus",), packages=("constriction",)),
    "control": Job(f"{_HERE}.jobs:_control", packages=("gymnasium",)),
    "world": Job(f"{_HERE}.jobs:_world", packages=("gymnasium",)),
    "decode": Job(f"{_HERE}.decoding:decode_text", after=("draft",), alone=True),
    "serve": Job(
        f"{_HERE}.jobs:_serve",
        after=("decode",),
        packages=("fastapi", "uvicorn", "prometheus_client"),
        alone=True,
    ),
}
PARTS: dict[str, tuple[str, ...]] = {
    "pretrain": ("draft", "together"),
    "decode": ("decode", "serve"),
    "certify": ("certify",),
    "world": ("world",),
    "control": ("control",),
}


def jobs_of(parts: Sequence[str]) -> list[str]:
    """Return the jobs of some parts, with all that they need, in order."""
    wanted: set[str] = set()

    def want(name: str) -> None:
        wanted.add(name)
        for before in TABLE[name].after:
            want(before)

    for part in parts:
        for name in PARTS[part]:
            want(name)
    return [name for name in TABLE if name in wanted]


def finished(out: Path, name: str) -> dict[str, Any] | None:
    """Return what a job left, or None while it is not done."""
    path = out / JOBS / f"{name}.json"
    return files.read_json(path, what=f"job {name}") if path.exists() else None


def forget_skipped(out: Path, names: Sequence[str]) -> None:
    """Drop the word of jobs that lacked a package, so that they are asked again."""
    for name in names:
        if SKIPPED in (finished(out, name) or {}).get("result", {}):
            (out / JOBS / f"{name}.json").unlink()


def do(name: str, settings: DemoConfig, out: Path) -> None:
    """Do a job that is not done, and leave its result; one that lacks a package says so in its result.

    Raises:
        ForethoughtError: as the job.
    """
    began = time.perf_counter(), _cpu_seconds()
    try:
        for package in TABLE[name].packages:
            require(package, extra=EXTRA, purpose=f"the part {name!r} of the demo")
        result = dict(TABLE[name].work()(settings, out))
    except MissingExtraError as error:
        sys.stderr.write(f"left out: {error}\n")
        result = {SKIPPED: str(error)}
    seconds = {"wall": round(time.perf_counter() - began[0], 1), "cpu": round(_cpu_seconds() - began[1], 1)}
    files.write_json(out / JOBS / f"{name}.json", {"result": result, "seconds": seconds})


def do_all(names: Sequence[str], settings: DemoConfig, out: Path, *, patience: float = 0.2) -> None:
    """Do every job of a list that nobody else does, in order of need, and wait for those that somebody else does.

    Raises:
        ForethoughtError: as the first job that fails.
    """
    files.make_directory(out / JOBS)
    while True:
        open_jobs = [name for name in names if finished(out, name) is None]
        if not open_jobs:
            return
        if not any(_try(name, settings, out) for name in open_jobs):
            time.sleep(patience)


def _try(name: str, settings: DemoConfig, out: Path) -> bool:
    if any(finished(out, before) is None for before in TABLE[name].after):
        return False
    with _claimed(out / JOBS / f"{name}.lock") as mine:
        if not mine or finished(out, name) is not None:
            return False
        do(name, settings, out)
    return True


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    with files.open_write(path, append=True) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _control(settings: DemoConfig, out: Path) -> Mapping[str, Any]:
    from forethought.app.demo.control import run_control

    return run_control(settings.control, out / "control")


def _world(settings: DemoConfig, out: Path) -> Mapping[str, Any]:
    from forethought.app.demo.worlds import run_world

    return run_world(settings.world, out / "world")


def _serve(settings: DemoConfig, out: Path) -> Mapping[str, Any]:
    from forethought.app.demo.serving import serve_text

    decoded = (finished(out, "decode") or {})["result"]
    return serve_text(settings, out, decoded["samples"][0]["text"])
