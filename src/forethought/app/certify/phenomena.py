"""The verb `certify phenomena`: each phenomenon as a JSON file, all of them as one page of pictures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from forethought.app.arguments import parse, say, table
from forethought.app.certify.pages import phenomena_page
from forethought.app.page import render
from forethought.certify.phenomena import PHENOMENA
from forethought.core import files
from forethought.core.config import config
from forethought.core.errors import InputError, unknown_name
from forethought.core.progress import track
from forethought.core.run import Exists, Run, open_run


@dataclass(frozen=True)
class PhenomenaArguments:
    """Show benign overfitting, double descent, flat and wide minima, and soft biases, each measured here.

    One JSON file a phenomenon, and a page with a picture of each.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = ()
    """Which ones; none: all."""
    out: Path | None = None
    """The run directory to write; without it, the names are listed."""
    budget: Literal["smoke", "full"] = "smoke"
    """smoke: all in a minute and a half; full: all in a quarter of an hour."""
    seed: int = 0
    """Decides every draw."""
    exists: Exists = "refuse"
    """What to do when the run directory is already there; resume goes on after the last finished phenomenon."""
    json: bool = False
    """Print result.json as one last line on standard output."""


@config
class PhenomenaRun:
    """What a run of phenomena depends on."""

    names: tuple[str, ...]
    budget: Literal["smoke", "full"]
    seed: int


def phenomena_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought certify phenomena` and return what held, by name.

    Raises:
        InputError: a name or the directory cannot be used.
    """
    given = parse(PhenomenaArguments, arguments, verb="certify phenomena")
    for name in given.names:
        if name not in PHENOMENA:
            raise unknown_name("phenomenon", name, PHENOMENA)
    if given.out is None:
        if given.names:
            raise InputError("give --out DIR for the pictures and figures")
        say("\n".join(PHENOMENA), as_json=given.json)
        return {"kind": "certify.phenomena.list", "names": list(PHENOMENA)}
    settings = PhenomenaRun(given.names or tuple(PHENOMENA), given.budget, given.seed)
    with Run.open(given.out, config=settings, recipe="certify.phenomena", exists=given.exists) as run:
        outcomes = _measure(run, settings)
        result = run.result() or _conclude(run, outcomes, settings)
    page = phenomena_page(open_run(given.out), outcomes)
    files.replace_file(given.out / "report.html", render(page).encode())
    shown = {name: "every expected shape showed" if ok else "not every expected shape showed"
             for name, ok in result["all_held"].items()}  # fmt: skip
    say(f"{given.out}:\n{table(shown)}\n  pictures in {given.out / 'report.html'}", as_json=given.json)
    return result


def _measure(run: Run, settings: PhenomenaRun) -> list[dict[str, Any]]:
    outcomes: list[dict[str, Any]] = []
    with track("phenomena", len(settings.names), unit="phenomena") as progress:
        for number, name in enumerate(settings.names):
            progress.update(number, now=name)
            path = run.directory / f"{name}.json"
            if not path.exists():
                started = time.perf_counter()
                outcome = PHENOMENA[name](settings.budget, settings.seed).to_dict()
                files.write_json(path, outcome)
                run.log({"event": "phenomenon", "name": name}, timing={"seconds": time.perf_counter() - started})
            outcomes.append(files.read_json(path, what="phenomenon"))
        progress.update(len(settings.names))
    return outcomes


def _conclude(run: Run, outcomes: list[dict[str, Any]], settings: PhenomenaRun) -> dict[str, Any]:
    result: dict[str, Any] = {
        "kind": "certify.phenomena",
        "budget": settings.budget,
        "seed": settings.seed,
        "all_held": {outcome["name"]: all(outcome["holds"].values()) for outcome in outcomes},
        "holds": {outcome["name"]: outcome["holds"] for outcome in outcomes},
    }
    run.write_result(result)
    return result
