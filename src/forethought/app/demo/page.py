"""The page of the tour: a chapter a room, pictures first, each with the one sentence that it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forethought.app import charts
from forethought.app.demo.bodies_page import body_chapter, body_figures, world_chapter, world_figures
from forethought.app.demo.text_page import certify_chapter, decode_chapter, pretrain_chapter, text_figures
from forethought.app.page import Page, Section, environment_line, table_of
from forethought.app.pages import OpenedRun, difference_sections

# The titles of jobs, in the order of the tour.
JOBS = {
    "corpus": "corpus",
    "target": "target model",
    "draft": "draft model",
    "together": "models on scarce data",
    "certify": "certificate",
    "world": "world model",
    "control": "control",
    "decode": "decoding",
    "serve": "serving",
}


def demo_page(run: OpenedRun) -> Page:
    """Return the page of a tour, of whatever parts are done, read from its own directory and the runs below."""
    result = run["result"]
    sections = [
        *pretrain_chapter(run),
        *certify_chapter(result.get("certify")),
        *decode_chapter(result),
        *world_chapter(result.get("world"), run["directory"]),
        *body_chapter(result.get("control")),
        *_cost(result),
        *difference_sections(run),
    ]
    return Page(
        title="Forethought: predict before it happens",
        lead="One command made all of this, here: language models from a corpus that every Python has, a guarantee for "
        "one of them, faster decoding that changes no token, a world model that plans from pixels, and a robot that "
        "notices that its body changed.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=[*text_figures(result), *world_figures(result.get("world")), *body_figures(result.get("control"))],
        sections=sections,
    )


def _cost(result: Mapping[str, Any]) -> list[Section]:
    seconds = result["seconds"]
    rows: list[list[object]] = [
        [title, seconds[name]["cpu"], seconds[name]["wall"]] for name, title in JOBS.items() if name in seconds
    ]
    rows.append(["all", sum(each["cpu"] for each in seconds.values()), None])
    left = [[title, result[name]["skipped"]] for name, title in JOBS.items() if "skipped" in result.get(name, {})]
    shown = {title: seconds[name]["cpu"] for name, title in JOBS.items() if name in seconds}
    sections = [
        Section(
            "What it cost",
            "Processor seconds of each job; two jobs of one core each run side by side, and a job that was interrupted "
            "counts from where it went on.",
            drawing=charts.bars(shown, label="processor seconds"),
            table=table_of(["job", "processor seconds", "seconds on the wall"], rows),
            chapter="The bill",
        )
    ]
    if left:
        table = table_of(["left out", "why"], left)
        sections.append(Section("What was left out", "Parts that lack a package say which.", table=table))
    return sections
