"""The recipes once on a million tokens: standard, regularised, five members averaged, and their student.

    python benchmarks/studies/pretrain_million.py --data DIR --work DIR [--quick --out FILE]

Settings are those that the ladder found on less text (pretrain_ladder.py): nothing is searched here. About 45
CPU-minutes on one thread; resumable.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pretrain_distil import Arm, Subject, distil_all
from pretrain_ladder import corpus
from pretrain_study import shape, spent, timed, write_study

from forethought.core.config import to_dict
from forethought.pretrain import FitConfig, Grid, Point, StudyConfig
from forethought.pretrain.study import ladder
from forethought.train import LoopConfig, OptimiserConfig

NAME = "pretrain_million"
DATA, QUICK_DATA = 1 << 20, 4096
SHAPE = (64, 2)
POINT = Point(tau=4.0, lr=3e-3, epochs=4.0)
STANDARD = Point(tau=None, lr=3e-3, epochs=2.0)
ARMS = (Arm("soft", 1.0, 8.0),)


def study(place: Path, data: int) -> StudyConfig:
    """Return a ladder of one rung a recipe: one size, one budget, one point each."""
    fit = FitConfig(
        sources=(str(place),),
        model=shape(*SHAPE),
        optimiser=OptimiserConfig(lr=POINT.lr, tau=POINT.tau),
        loop=LoopConfig(evaluate_every=0, checkpoint_every=500, log_every=50),
        batch_size=8,
        context=128,
        max_positions=512,
        evaluation_tokens=65_536,
    )
    return StudyConfig(
        fit=fit,
        sizes=(fit.model,),
        data=(data,),
        grid=Grid(tau=(POINT.tau or 0.0,), lr=(POINT.lr,), epochs=(STANDARD.epochs, POINT.epochs)),
        start=POINT,
        standard_start=STANDARD,
        searched=1,
        longer=1.0,
        search_ensemble=False,
        members=5,
        group=5,
    )


def recipes(settings: StudyConfig, work: Path) -> dict[str, Any]:
    """Train all three recipes, the ensemble's first members being the single models."""
    return ladder(settings, work / "million", exists="resume", cache=work / "points")


def distilled(settings: StudyConfig, work: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Distil the five into one of their size."""
    single, teacher = (next(row for row in rows if row["recipe"] == name) for name in ("regularised", "ensemble"))
    subject = Subject(settings, single, teacher, work / "points", work / "million-distil", 0)
    return distil_all(subject, arms=ARMS, own=(replace(ARMS[0], name="self, soft"),))


def main() -> None:
    """Run what is missing and write the result."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    place = corpus(given.data, given.work)
    settings = study(place, QUICK_DATA if given.quick else DATA)
    found, _ = timed(given.work, "million", lambda: recipes(settings, given.work))
    kept, _ = timed(given.work, "million-distil", lambda: distilled(settings, given.work, found["rows"]))
    write_study(
        NAME,
        given,
        seeds=list(range(settings.members)),
        cpu_seconds=spent(given.work, "million") + spent(given.work, "million-distil"),
        settings={"source": "novels100.jsonl.gz", "study": to_dict(settings)},
        rows=found["rows"],
        summary={"losses": {row["recipe"]: row["loss"] for row in found["rows"]}, "distillation": kept},
    )


if __name__ == "__main__":
    main()
