"""The recipes as procedures: what is searched, what is trained, and what counts as the result. Each is one screen.

Settings are chosen on the "tune" slice and figures are quoted from the "report" slice, with at least three seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from forethought.pretrain.config import ModelShape
from forethought.pretrain.members.config import MembersConfig, seeds
from forethought.pretrain.scores import Logs, Scores, average_loss, open_scores, subset_curve
from forethought.pretrain.study.config import StudyConfig
from forethought.pretrain.study.points import PointStore, Record
from forethought.pretrain.study.search import Certificate, Grid, Point, certificate, search


@dataclass(frozen=True)
class Rung:
    """One recipe at one size and data budget: the tuned point, its certificate, and its losses over seeds."""

    recipe: str
    shape: ModelShape
    data: int
    certificate: Certificate
    records: tuple[Record, ...]
    curve: tuple[float, ...] = ()

    @property
    def report_losses(self) -> list[float]:
        """The members' losses on the slice that nothing was chosen by."""
        return [float(record["report_loss"]) for record in self.records]

    @property
    def loss(self) -> float:
        """The recipe's loss: the mean over seeds, or of all members averaged for an ensemble."""
        return self.curve[-1] if self.curve else statistics.fmean(self.report_losses)

    @property
    def sd(self) -> float:
        """The sd of a single run over seeds: the noise floor."""
        return statistics.stdev(self.report_losses)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        first, count = self.records[0], len(self.records)
        return {
            "recipe": self.recipe,
            "shape": f"{self.shape.hidden_size}x{self.shape.num_layers}",
            "parameters": first["parameters"],
            "parameters_non_embedding": first["parameters_non_embedding"],
            "total_parameters": first["parameters"] * (count if self.curve else 1),
            "data": self.data,
            **self.certificate.to_dict(),
            "weight_decay": first["weight_decay"],
            "loss": self.loss,
            "seed_losses": self.report_losses,
            "seed_sd": self.sd,
            "curve": list(self.curve),
            "runs": sorted({str(record["run"]) for record in self.records}),
            "models": [f"runs/{record['run']}/models/{record['name']}" for record in self.records],
        }


def settings_of(study: StudyConfig, shape: ModelShape, data: int, *, standard: bool = False) -> MembersConfig:
    """Return what all points of one size and data budget share."""
    optimiser = replace(study.fit.optimiser, tau=None, weight_decay=study.standard_decay)
    fit = replace(study.fit, model=shape, optimiser=optimiser if standard else study.fit.optimiser)
    return MembersConfig(fit=fit, train_tokens=data, frontier=study.frontier)


def standard(study: StudyConfig, store: PointStore, shape: ModelShape, data: int, start: Point) -> Rung | None:
    """Tune rate and epochs at a fixed small decay: the baseline that overfits."""
    settings = settings_of(study, shape, data, standard=True)
    grid = replace(study.grid, tau=())
    found, _ = search(start, grid, lambda points: store.evaluate(settings, points, seed=study.seed))
    return _repeat("standard", study, store, settings, data, found)


def regularised(study: StudyConfig, store: PointStore, shape: ModelShape, data: int, start: Point) -> Rung | None:
    """Tune the decay too, as the weights' memory in epochs; a budget that is not searched takes its start as it is."""
    settings = settings_of(study, shape, data)
    if not is_searched(study, data):
        losses = store.evaluate(settings, [start], seed=study.seed)
        return (
            _repeat("regularised", study, store, settings, data, certificate(start, losses, study.grid))
            if losses
            else None
        )
    found, _ = search(start, study.grid, lambda points: store.evaluate(settings, points, seed=study.seed))
    return _repeat("regularised", study, store, settings, data, found)


def is_searched(study: StudyConfig, data: int) -> bool:
    """Return whether regularised points are searched at a data budget, or taken over from the last one that is."""
    return not study.searched or data in study.data[: study.searched]


def ensemble(
    study: StudyConfig,
    store: PointStore,
    shape: ModelShape,
    data: int,
    single: Point,
    taken: Point | None = None,
) -> Rung | None:
    """Average K members that train longer and forget less than the best single model: settings of their own.

    The loss that chooses is the ensemble's, not a member's: members that are worse alone can be better together.
    `taken` is a tuned point of the same size at fewer tokens, used as it is.
    """
    settings = settings_of(study, shape, data)
    lr = single.lr if taken is None else taken.lr
    grid = Grid(tau=study.grid.tau, lr=(lr,), epochs=study.grid.epochs)
    tau = None if single.tau is None else nearest(single.tau * study.longer, grid.tau)
    start = taken or Point(tau=tau, lr=lr, epochs=nearest(single.epochs * study.longer, grid.epochs))
    judges = study.search_members or study.members

    def evaluate(points: Sequence[Point]) -> dict[Point, float]:
        found = {point: _members(study, store, settings, point, judges) for point in points}
        return {point: average_loss(rows_of(store, records, "tune")) for point, records in found.items() if records}

    if study.search_ensemble and taken is None:
        verdict, _ = search(start, grid, evaluate)
    else:
        losses = evaluate([start])
        if start not in losses:
            return None
        verdict = certificate(start, losses, grid)
    records = _members(study, store, settings, verdict.point, study.members)
    if not records:
        return None
    curve = subset_curve(rows_of(store, records, "report"))
    return Rung("ensemble", shape, data, verdict, tuple(records), tuple(curve))


def nearest(value: float, axis: Sequence[float]) -> float:
    """Return the grid value nearest in ratio."""
    return min(axis, key=lambda each: abs(np.log(each / value)))


def rows_of(store: PointStore, records: Sequence[Record], slice_name: str) -> Logs:
    """Return the cached log-probabilities of trained members on a slice, one row a record."""
    opened: dict[str, Scores] = {}
    rows: list[Logs] = []
    for record in records:
        run = str(record["run"])
        if run not in opened:
            opened[run] = open_scores(store.root / "runs" / run / "scores")
        rows.append(opened[run].rows(slice_name, [record["name"]])[0])
    return np.stack(rows)


def _members(study: StudyConfig, store: PointStore, settings: MembersConfig, point: Point, count: int) -> list[Record]:
    members = seeds(count, first=study.seed, lr=point.lr, tau=point.tau)
    records = store.train(replace(settings, members=members, epochs=point.epochs))
    return [record for record in records if record is not None] if all(records) else []


def _repeat(
    recipe: str, study: StudyConfig, store: PointStore, settings: MembersConfig, data: int, found: Certificate
) -> Rung | None:
    """Train the tuned point with further seeds: fresh ones, as the seed that won the search is lucky."""
    point = found.point
    members = seeds(study.noise_seeds, first=study.seed + 1, lr=point.lr, tau=point.tau)
    records = store.train(replace(settings, members=members, epochs=point.epochs))
    if not all(records):
        return None
    return Rung(recipe, settings.fit.model, data, found, tuple(record for record in records if record is not None))
