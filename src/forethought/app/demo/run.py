"""The tour from end to end: jobs in one process or two, the result, the page; gone on with after any interruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forethought.app.demo.halves import one_thread, side_by_side
from forethought.app.demo.jobs import PARTS, SKIPPED, TABLE, do_all, finished, forget_skipped, jobs_of
from forethought.app.demo.settings import DEMOS, DemoConfig
from forethought.app.report import write_report
from forethought.core.artefact import read_kind
from forethought.core.config import from_dict
from forethought.core.run import Exists, Run, open_run

KIND = "demo"
PAGES = ("target", "draft", "members", "students", "certificate", "world", "control")
"""Runs below the tour's own, each with a page of its own."""


def run_demo(
    settings: DemoConfig,
    out: Path,
    *,
    recipe: str,
    exists: Exists = "resume",
    parts: Sequence[str] = tuple(PARTS),
    processes: int = 1,
) -> dict[str, Any]:
    """Do the jobs of some parts that are not done yet, write the result over all that is there, and draw the page.

    With two processes, jobs that want one core each run side by side, in any order that their needs allow; what they
    make is the same.

    Raises:
        InputError: the sources or the directory cannot be used.
        InterruptedRunError: interrupted and saved.
        TaskError: a second process failed.
    """
    known = DEMOS.get(recipe)
    with Run.open(out, config=settings, recipe=recipe, recipe_config=known and known(), exists=exists) as run:
        names = jobs_of(parts)
        forget_skipped(out, names)
        _do(names, settings, out, processes)
        result: dict[str, Any] = {"kind": KIND, "recipe": recipe, **collected(out)}
        run.write_result(result)
    draw(out)
    return result | {"report": str(write_report(out))}


def do_jobs(out: Path, names: Sequence[str]) -> None:
    """Do jobs of a tour that another process leads, with that tour's settings.

    Raises:
        ForethoughtError: as the first job that fails.
    """
    settings = from_dict(DemoConfig, open_run(out)["config"]["config"], source=str(out / "config.json"))
    with one_thread():
        do_all(names, settings, out)


def collected(out: Path) -> dict[str, Any]:
    """Return the results of all jobs that are done, and what they cost."""
    done = {name: found for name in TABLE if (found := finished(out, name)) is not None}
    results: dict[str, Any] = {name: found["result"] for name, found in done.items() if name != "corpus"}
    return {**results, "seconds": {name: found["seconds"] for name, found in done.items()}}


def draw(out: Path) -> None:
    """Write the pages of the runs below."""
    for name in PAGES:
        if (out / name / "result.json").exists() and read_kind(out / name) == "run":
            write_report(out / name)


def _do(names: Sequence[str], settings: DemoConfig, out: Path, processes: int) -> None:
    beside = [name for name in names if not TABLE[name].alone]
    first = [name for name in names if TABLE[name].alone and not TABLE[name].after]
    do_all(first, settings, out)
    missing = [name for name in beside if finished(out, name) is None]
    if processes > 1 and len(missing) > 1:
        side_by_side(missing, out, processes)
    else:
        with one_thread():
            do_all(missing, settings, out)
    do_all(names, settings, out)


def skipped(result: dict[str, Any]) -> dict[str, str]:
    """Return why jobs were left out, by name."""
    return {name: value[SKIPPED] for name, value in result.items() if isinstance(value, dict) and SKIPPED in value}
