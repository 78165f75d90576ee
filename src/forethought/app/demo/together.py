"""The job of scarce data: models that differ by seed, their average, and students that learn the average."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from forethought.app.demo.settings import DemoConfig
from forethought.app.ensemble import model_places, score_runs
from forethought.core.run import open_run
from forethought.pretrain.distil import retention, soft_distil
from forethought.pretrain.export import write_card
from forethought.pretrain.members import MembersConfig, seeds, train_members
from forethought.stats import mean_interval

MEMBERS, STUDENTS = "members", "students"


def train_together(settings: DemoConfig, out: Path) -> dict[str, Any]:
    """Train the members, average them, distil the average, and return each one's held-out loss."""
    scarce = _on(settings.members, out)
    place = out / MEMBERS
    trained = train_members(scarce, place, recipe="demo.members", exists="resume", title="three models")
    scored = score_runs([place])
    write_card(place, trained, recipe="demo.members", ensemble=scored)
    first = 1 + max(member.seed for member in scarce.members)
    own = replace(scarce, members=seeds(settings.students, first=first))
    soft_distil(own, model_places([place], list(scored["candidates"])), out / STUDENTS, exists="resume")
    alone, taught = reported(place), reported(out / STUDENTS)
    floor = _sd_of_mean(alone)
    kept = retention(
        single=(statistics.fmean(alone), floor),
        student=(statistics.fmean(taught), _sd_of_mean(taught) or floor),
        teacher=(scored["ensemble_loss"], floor),
    )
    return {
        "train_tokens": scarce.train_tokens,
        "epochs": scarce.epochs,
        "parameters": trained["parameters"],
        "tokens": scored["tokens"],
        "single_losses": alone,
        "single_interval": _interval(alone),
        "ensemble_loss": scored["ensemble_loss"],
        "student_losses": taught,
        "student_interval": _interval(taught),
        **kept,
    }


def reported(run: Path) -> list[float]:
    """Return the held-out losses of a run's members."""
    result = open_run(run)["result"] or {}
    return [float(member["report_loss"]) for member in result["members"]]


def _on(settings: MembersConfig, out: Path) -> MembersConfig:
    return replace(settings, fit=replace(settings.fit, sources=(str(out / "corpus"),)))


def _sd_of_mean(losses: list[float]) -> float:
    return statistics.stdev(losses) / len(losses) ** 0.5 if len(losses) > 1 else 0.0


def _interval(losses: list[float]) -> list[float] | None:
    if len(losses) < 2:
        return None
    found = mean_interval(losses)
    return [found.low, found.high]
