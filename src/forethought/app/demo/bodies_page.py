"""The chapters of bodies: a world model from pixels, and control; with the page of the tour's control run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from forethought.app import charts
from forethought.app.control.pictures import horizon_chart, monitor_chart
from forethought.app.demo.chapters import chapter, linked
from forethought.app.page import Figure, Page, Section, environment_line, table_of
from forethought.app.pages import OpenedRun
from forethought.app.world.page import success_section, surprise_sections
from forethought.core.run import open_run

ARMS = {
    "blocking": "rest while planning",
    "one": "one plan made ahead",
    "several": "plans for likely ends",
    "rtc": "real-time chunking",
}


def world_chapter(found: Mapping[str, Any] | None, place: Path) -> list[Section]:
    """Return what the world model reached, imagined and was surprised by."""
    if found is None or "skipped" in found:
        return []
    pictures = open_run(place / "world")["result"]["pictures"]
    near = found["near"]
    # The path is a square picture; as wide as the page it would push everything else off the screen.
    path = pictures["path"].replace("<svg", '<svg style="max-width:460px"', 1)
    first = success_section("It reaches goals that it is shown as pictures", near, drawing=path)
    sentence = (
        f"Two rooms with a door, learned from {found['fit']['frames_seen']:,} frames without rewards: paths to one far "
        f"goal, and the share of {near['pairs']} near goals reached within {near['budget']} steps (95 % intervals)."
    )
    sections = [
        linked(replace(first, sentence=sentence, table=None), "world/report.html", "the world model's page"),
        Section(
            "It imagines",
            "What happened; the same frames through the model and back; and what it imagines from the first frame and "
            "the actions alone.",
            drawing=pictures["imagined"],
        ),
        replace(
            surprise_sections(found["surprise"], pictures["trace"])[0],
            title="It knows when reality surprises it",
            sentence="How surprising each frame is: a mass that is moved by an unseen hand (red line) stands out at "
            "once, in standard deviations of ordinary frames.",
            table=None,
        ),
    ]
    return chapter(sections, "World: a model of what happens next, from pixels")


def world_figures(found: Mapping[str, Any] | None) -> list[Figure]:
    """Return the figure of the world that stands at the top."""
    if found is None or "skipped" in found:
        return []
    best = next(iter(found["near"]["policies"].values()))
    low, high = best["success_interval"]
    return [Figure("goals from pictures", f"{best['success']:.0%}", f"reached, 95 % {low:.0%} to {high:.0%}")]


def body_chapter(found: Mapping[str, Any] | None) -> list[Section]:
    """Return the reward, the changed body and planning ahead."""
    if found is None or "skipped" in found:
        return []
    first, *others = control_sections(found)
    return chapter([linked(first, "control/report.html", "control's page"), *others], "Control: plans that were ready")


def control_sections(found: Mapping[str, Any]) -> list[Section]:
    """Return the sections that the tour and the page of its control run share."""
    return [
        _reward_section(found["reward"]),
        *_story_sections(found["body"]),
        *_ahead_sections(found["ahead"]),
    ]


def control_page(run: OpenedRun) -> Page:
    """Return the page of the tour's control run."""
    result = run["result"]
    errors = result["body"]["story"]["errors"]
    sections = control_sections(result)
    if errors is not None:
        before, after = errors["new_before"], errors["new_after"]
        drawing = horizon_chart(
            {"before": before["model"], "after": after["model"], "no change": before["persistence"]}
        )
        sentence = "Error of the dynamics on held-out play of the changed body, before and after adapting."
        sections.append(Section("What the dynamics learned anew", sentence, drawing=drawing))
    return Page(
        title="D-MPC on a double integrator",
        lead=f"Proposal and dynamics learned random play with {len(result['seeds'])} seeds; every figure is over "
        f"{result['body']['as_learned']['rides']} rides.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=body_figures(result),
        sections=sections,
    )


def body_figures(found: Mapping[str, Any] | None) -> list[Figure]:
    """Return the figures of control that stand at the top."""
    if found is None or "skipped" in found:
        return []
    body = found["body"]
    figures = []
    known = [steps for steps in body["steps_to_alarm"] if steps is not None]
    if known:
        note = f"on a changed body until it adapts by itself, {len(known)} of {len(body['steps_to_alarm'])} seeds"
        figures.append(Figure("noticed after", f"{float(np.mean(known)):.0f} steps", note))
    removed = [cell["idle_removed"] for cell in found["ahead"] if cell["arm"] == "several"]
    if removed:
        note = "of waiting for plans, by plans made ahead"
        figures.append(Figure("idle time saved", f"{100 * min(removed):.0f} to {100 * max(removed):.0f} %", note))
    return figures


def _reward_section(found: Mapping[str, Any]) -> Section:
    longest = max(len(places) for places in found["positions"])
    padded = np.array([[*places, *[places[-1]] * (longest - len(places))] for places in found["positions"]])
    steps = list(range(1, longest + 1))
    name = f"position, mean of {len(padded)} rides"
    low, high = np.quantile(padded, [0.1, 0.9], axis=0)
    weights = "no weight changed" if found["weights_unchanged"] else "WEIGHTS CHANGED, which is a defect"
    return Section(
        "A new reward is obeyed at once",
        f"A mass that is pushed along a line is told to be at 1, and after {found['turn']} steps to be at -1: "
        f"{weights} (band: 80 % of rides).",
        drawing=charts.curves(
            {name: (steps, padded.mean(0).tolist())},
            x_label="step",
            y_label="position",
            levels={"first goal": 1.0, "then": -1.0},
            bands={name: (steps, low.tolist(), high.tolist())},
        ),
    )


def _story_sections(found: Mapping[str, Any]) -> list[Section]:
    story = found["story"]
    marks = {story["changed_at"]: "body turned round", story["adapted_at"]: "new dynamics"}
    trace = monitor_chart(story["trace"] | {"marks": marks})
    bars = {"the body it learned": found["as_learned"], "the changed body": found["changed"]}
    if found["adapted"] is not None:
        bars["after adapting by itself"] = found["adapted"]
    told = "" if found["adapted"] is not None else " It never noticed, so that nothing was adapted."
    return [
        Section(
            "It notices that its body changed, and adapts by itself",
            "How surprising each step was: when the motor is turned round the dynamics' errors pile up, the wish to "
            f"adapt arises, the mass plays without rewards, and the dynamics alone learn anew.{told}",
            drawing=trace,
        ),
        Section(
            "What adapting was worth",
            f"Return of a ride over {found['as_learned']['rides']} rides, with 95 % intervals.",
            drawing=charts.bars(
                {name: each["mean"] for name, each in bars.items()},
                label="return of a ride",
                intervals={name: each["interval"] for name, each in bars.items() if each["interval"] is not None},
            ),
        ),
    ]


def _ahead_sections(cells: Sequence[Mapping[str, Any]]) -> list[Section]:
    drawn = {
        title: (
            [cell["delay"] for cell in cells if cell["arm"] == arm],
            [100 * cell["idle"]["mean"] for cell in cells if cell["arm"] == arm],
        )
        for arm, title in ARMS.items()
    }
    return [
        Section(
            "Plans are ready before they are needed",
            "Share of its time that the mass waits for plans: plans for where a chunk of actions will likely end are "
            "made while it executes, and one that fits starts at once (virtual clock; gusts of wind).",
            drawing=charts.curves(drawn, x_label="control periods that a plan takes", y_label="idle, %"),
            table=table_of(
                ["method", "delay", "idle, %", "idle removed, %", "hits, %", "return", "gain over resting, 95 %"],
                [_ahead_row(cell) for cell in cells],
            ),
        )
    ]


def _ahead_row(cell: Mapping[str, Any]) -> list[object]:
    gain = cell.get("over_blocking")
    told = None
    if gain is not None:
        ends = "" if gain["interval"] is None else f" ({gain['interval'][0]:+.1f} to {gain['interval'][1]:+.1f})"
        told = f"{gain['mean']:+.1f}{ends}"
    removed, hits = cell.get("idle_removed"), cell["hit_rate"]
    return [
        ARMS.get(cell["arm"], "plans take no time"),
        cell["delay"],
        round(100 * cell["idle"]["mean"], 1),
        None if removed is None else round(100 * removed),
        None if hits is None else round(100 * hits),
        round(cell["return"]["mean"], 1),
        told,
    ]
