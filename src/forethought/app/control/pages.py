"""The pages of control: a trained agent, what it returned in an environment, an adaptation to a changed body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forethought.app import charts
from forethought.app.control.pictures import film_stills, horizon_chart, monitor_chart, returns_chart
from forethought.app.page import Figure, Page, Section, environment_line, table_of
from forethought.app.pages import OpenedRun, difference_sections, generic_page
from forethought.core import files
from forethought.core.run import open_run

ADAPTATION = "adaptation.json"
_NAMES = {"dynamics.diffusion": "multi-step dynamics", "dynamics.one-step": "one-step dynamics, rolled out"}


def run_page(run: OpenedRun) -> Page:
    """Return the page of a `control run`: returns, what they were measured on, film and monitor."""
    result = run["result"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    changes = f", body changed: {', '.join(result['changes'])}" if result["changes"] else ""
    return Page(
        title=f"{result['env_id']}: {result['return_mean']:,.1f} an episode",
        lead=f"{result['episodes']} episodes over {len(result['seeds'])} seeds in {result['env_id']} "
        f"({versions}){changes}; {result['agent']} by the method {result['method']}. Intervals are over episodes.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=_run_figures(result, versions),
        sections=[*_return_sections(result), *_film_sections(run), *_monitor_sections(result)],
    )


def train_page(run: OpenedRun) -> Page:
    """Return the page of a `control train` run: errors by horizon, the value's worth, how the parts learned."""
    result = run["result"]
    diversity = result["parts"].get("proposal.diffusion", {}).get("diversity")
    value = next((part for name, part in result["parts"].items() if name.startswith("value.")), {})
    calibration = value.get("calibration")
    figures = [Figure("data", f"{result['train_steps']:,}", f"steps of {result['train_episodes']} episodes")]
    if result["behaviour_return"] is not None:
        figures.append(Figure("behaviour", f"{result['behaviour_return']:,.1f}", "return of an episode of the data"))
    if calibration:
        figures.append(Figure("value", f"{calibration['r2']:.3f}", "r2 on held-out returns"))
    if diversity:
        note = "standard deviations between proposals of one situation"
        figures.append(Figure("proposals", f"{diversity['within']:.2f}", note))
    return Page(
        title=f"An agent for {result['env_id'] or 'a body without a name'}",
        lead=f"Proposal, dynamics and value learned from {result['train_steps']:,} steps; "
        f"{result['validation_episodes']} whole episodes were held out.{_constant(result)}",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=figures,
        sections=[*_error_sections(result["parts"]), *_learning_sections(run), *difference_sections(run)],
    )


def part_page(run: OpenedRun) -> Page:
    """Return the page of one part's run; of an adaptation, what was won and what was forgotten."""
    place = run["directory"] / ADAPTATION
    if not place.exists():
        return generic_page(run)
    told = files.read_json(place, what="report of an adaptation")
    before, after = (told[name]["model"] for name in ("new_before", "new_after"))
    sections = [_adaptation("On the changed body", "Held-out play", told["new_before"], told["new_after"])]
    if told["old_before"] is not None:
        sections.append(_adaptation("On the old body", "Original data", told["old_before"], told["old_after"]))
    return Page(
        title="Adaptation to a changed body",
        lead="Only the dynamics learned, from play without rewards; proposal and value are untouched.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=[
            Figure("1 step ahead", f"{after[0]:.4f}", f"was {before[0]:.4f}, in standard deviations"),
            Figure(f"{len(after)} steps ahead", f"{after[-1]:.4f}", f"was {before[-1]:.4f}"),
        ],
        sections=[*sections, *_learning_sections(run), *difference_sections(run)],
    )


def _run_figures(result: Mapping[str, Any], versions: str) -> list[Figure]:
    interval = result["return_interval"]
    spread = "" if interval is None else f"95 % {interval[0]:,.1f} to {interval[1]:,.1f}"
    figures = [Figure("return", f"{result['return_mean']:,.1f}", spread)]
    if "score" in result:
        note = f"0 random, 100 expert of D4RL; {result['env_id']}, {versions}"
        figures.append(Figure("normalised score", f"{result['score']:.1f}", note))
    figures.append(Figure("steps an episode", f"{result['length_mean']:,.1f}", _ended(result)))
    if result["num_plans"]:
        told = f"{result['late_plans']} late, {result['faults']} faults"
        figures.append(Figure("plans", f"{result['num_plans']:,}", told))
    return figures


def _return_sections(result: Mapping[str, Any]) -> list[Section]:
    rows = result["per_episode"]
    columns = ["seed", "episode", "return", "steps", "ended before its limit"]
    table = [[row["seed"], row["episode"], row["return"], row["steps"], row["terminated"]] for row in rows]
    return [
        Section(
            "Returns",
            "Every episode, seeds side by side; bars are each seed's mean, the band is the 95 % interval of the mean "
            "of all.",
            drawing=returns_chart(rows, result["return_interval"], result["return_mean"]),
        ),
        Section("Episodes", "The same as a table (episodes.csv).", table=table_of(columns, table[:60])),
    ]


def _film_sections(run: OpenedRun) -> list[Section]:
    films = run["result"].get("films", [])
    drawing = film_stills(run["directory"] / films[0]) if films else ""
    if not drawing:
        return []
    return [Section("What it looks like", f"Stills of {films[0]}, from first to last.", drawing=drawing)]


def _monitor_sections(result: Mapping[str, Any]) -> list[Section]:
    trace = result.get("monitor")
    if trace is None:
        return []
    alarm = trace["alarm_at"]
    told = "It never wished to adapt." if alarm is None else f"Its wish to adapt arose after {alarm} steps."
    return [
        Section(
            "Does the body still do what was learned?",
            f"How surprising each observation was, against nominal episodes (z, cut at 10). {told}",
            drawing=monitor_chart(trace),
        )
    ]


def _error_sections(parts: Mapping[str, Any]) -> list[Section]:
    errors = {
        _NAMES.get(name, name): part["rollout_error"]["model"]
        for name, part in parts.items()
        if "rollout_error" in part
    }
    if not errors:
        return []
    still = next(part["rollout_error"]["persistence"] for part in parts.values() if "rollout_error" in part)
    return [
        Section(
            "How far it foresees",
            "Root mean square error on held-out episodes by steps ahead, fed the actions that were taken, in standard "
            "deviations of each number; beside saying that nothing changes.",
            drawing=horizon_chart({**errors, "no change": still}),
        )
    ]


def _adaptation(title: str, data: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Section:
    return Section(
        title,
        f"{data}: error by steps ahead before and after, in standard deviations, beside saying that nothing changes.",
        drawing=horizon_chart({"before": before["model"], "after": after["model"], "no change": before["persistence"]}),
    )


def _learning_sections(run: OpenedRun) -> list[Section]:
    """Return the loss of each part below a training run, or of the run itself."""
    folders = sorted((run["directory"] / "parts").glob("*/config.json"))
    runs = {path.parent.name: open_run(path.parent) for path in folders} or {"dynamics": run}
    series: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for name, each in runs.items():
        records = [record for record in each["metrics"] if record.get("event") == "train"]
        if len(records) > 1:
            losses = charts.smooth([record["loss"] for record in records], 0.05)
            first = losses[0] or 1.0
            series[name] = ([record["step"] for record in records], [loss / first for loss in losses])
    if not series:
        return []
    sentence = "Each part's training loss, smoothed, as a share of its first value."
    return [Section("How it learned", sentence, drawing=charts.curves(series, x_label="step", y_label="loss, share"))]


def _ended(result: Mapping[str, Any]) -> str:
    return f"{result['terminated_share']:.0%} ended before their limit"


def _constant(result: Mapping[str, Any]) -> str:
    told = [f"{name} {places}" for name, places in result.get("constant", {}).items() if places]
    return f" Constant in the data: {', '.join(told)}." if told else ""
