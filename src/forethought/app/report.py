"""Any run directory as one self-contained HTML page: pictures first, each with the one sentence that it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from forethought.app.arguments import parse, say
from forethought.app.certify.pages import certificate_page
from forethought.app.control.pages import part_page, run_page, train_page
from forethought.app.demo.bodies_page import control_page
from forethought.app.demo.page import demo_page
from forethought.app.page import Page, render
from forethought.app.pages import OpenedRun, fit_page, generic_page
from forethought.app.pretrain_pages import continue_page, ladder_page, members_page
from forethought.app.world.page import world_collapse_page, world_demo_page, world_fit_page
from forethought.core import files
from forethought.core.artefact import read_kind
from forethought.core.errors import ArtefactError
from forethought.core.run import open_run

REPORT = "report.html"


@dataclass(frozen=True)
class ReportArguments:
    """Draw a run directory, finished or not, as one HTML file that needs no script and no network."""

    directory: Annotated[Path, tyro.conf.Positional]
    """The run directory."""
    json: bool = False
    """Print the run's result.json as one last line on standard output."""


def report_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought report` and return the run's result with the report's place.

    Raises:
        ArtefactError: the directory is no run, or a file in it is malformed.
    """
    given = parse(ReportArguments, arguments, verb="report")
    path = write_report(given.directory)
    say(f"wrote {path}", as_json=given.json)
    return (open_run(given.directory)["result"] or {"kind": "unfinished"}) | {"report": str(path)}


def write_report(directory: Path | str) -> Path:
    """Write report.html into a run directory and return its path.

    Raises:
        ArtefactError: the directory is no run, or a file in it is malformed.
    """
    directory = Path(directory)
    if read_kind(directory) != "run":
        raise ArtefactError(f"{directory} is no run directory; give one that `forethought pretrain fit` or demo wrote")
    run = open_run(directory)
    result = run["result"] or {}
    build = PAGES.get(str(result.get("kind")), generic_page)
    path = directory / REPORT
    files.replace_file(path, render(build(run)).encode())
    return path


PAGES: dict[str, Callable[[OpenedRun], Page]] = {
    "certify.run": certificate_page,
    "control.part": part_page,
    "control.run": run_page,
    "control.train": train_page,
    "demo": demo_page,
    "demo.control": control_page,
    "pretrain.continue": continue_page,
    "pretrain.fit": fit_page,
    "pretrain.ladder": ladder_page,
    "pretrain.members": members_page,
    "world.collapse": world_collapse_page,
    "world.demo": world_demo_page,
    "world.fit": world_fit_page,
}
