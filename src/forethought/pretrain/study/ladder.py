"""The ladder: every recipe at every size and data budget that the time affords, each search from its neighbour's point.

The directory is a run: config, `points/` and `runs/` (cached by content), and result.json with rows and laws.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from forethought.core import files
from forethought.core.errors import ConfigError, DataError, InputError
from forethought.core.run import Exists, Run
from forethought.data import Corpus
from forethought.pretrain.config import ModelShape
from forethought.pretrain.inputs import check_corpus, open_or_prepare
from forethought.pretrain.members.config import MembersConfig
from forethought.pretrain.members.spread import Spread
from forethought.pretrain.slices import training_part
from forethought.pretrain.study.afford import member_seconds, parameters_of, windows_of
from forethought.pretrain.study.budget import Guard, Item, Plan, plan
from forethought.pretrain.study.config import StudyConfig
from forethought.pretrain.study.laws import laws_of
from forethought.pretrain.study.points import PointStore, Record
from forethought.pretrain.study.recipes import Rung, ensemble, is_searched, regularised, settings_of, standard
from forethought.pretrain.study.search import Point
from forethought.train import Parallel

Tell = Callable[[Record], None]
_EXPECTED_POINTS = 9  # a first certificate takes 7 runs; from a neighbour's point a move is seldom needed


@dataclass(frozen=True)
class Rank:
    """One rung to climb: a recipe at a size and a data budget."""

    recipe: str
    shape: ModelShape
    data: int

    def __str__(self) -> str:
        """Return the rung in words."""
        return f"{self.recipe}, {self.shape.hidden_size}x{self.shape.num_layers}, {self.data:,} tokens"


def ladder(
    study: StudyConfig,
    out: Path | str,
    *,
    recipe: str = "ladder",
    exists: Exists = "refuse",
    seconds: float | None = None,
    cache: Path | None = None,
    tell: Tell = lambda _record: None,
    planned: Callable[[Plan], None] = lambda _plan: None,
) -> dict[str, Any]:
    """Climb the ladder as far as `seconds` allow and return rows, laws, and what was left out.

    Interrupted or killed, the same call with exists="resume" goes on; what was trained is not trained again. A finished
    one that left something out for want of time goes on where it stopped. Trained points lie in `cache`, which several
    ladders on one corpus may share; None: in `out`.

    Raises:
        InputError: the corpus, the config or the directory cannot be used, or not even the first rung is affordable.
        InterruptedRunError: interrupted and saved.
    """
    out, started = Path(out), time.monotonic()
    with Run.open(out, config=study, recipe=recipe, exists=exists, allow=("workers", "backend", "group")) as run:
        finished = run.result()
        if finished is not None and not finished["left_out"]:
            return finished
        try:
            corpus = open_or_prepare(study.fit, out, Parallel(torch.device("cpu")))
            check_corpus(run, corpus)
            files.make_directory(cache or out)
            work = Climb(study, corpus, cache or out, seconds, tell)
        except InputError:
            run.discard()
            raise
        work.guard.started = started  # reading and tokenising are part of the budget
        whole = work.plan(work.guard.remaining)
        planned(whole)
        rungs = work.climb(whole)
        result = work.result(rungs, whole)
        run.write_result(result)
        return result


def point_row(record: Record) -> dict[str, Any]:
    """Return what a table of trained points says of one."""
    model = record["model"]
    own = ("train_tokens", "tau", "lr", "weight_decay", "epochs", "seed", "tune_loss", "report_loss")
    return {"shape": f"{model['hidden_size']}x{model['num_layers']}"} | {name: record[name] for name in own}


class Climb:
    """A ladder under way: the store of points, the guard of the budget, and the tuned points so far."""

    def __init__(self, study: StudyConfig, corpus: Corpus, out: Path, seconds: float | None, tell: Tell) -> None:
        for data in study.data:
            if data > corpus.train.num_tokens:
                raise DataError(
                    f"{corpus.path} has {corpus.train.num_tokens:,} training tokens, and the ladder asks for {data:,}; "
                    "give more text, or fewer tokens with --study.data"
                )
        rows = study.fit.batch_size * study.fit.loop.accumulate
        training_part(corpus, study.data[0], window=study.fit.context, rows=rows)
        self.study = replace(study, fit=replace(study.fit, sources=(str(corpus.path),)))
        self.corpus, self.out = corpus, out
        self.guard = Guard(seconds, self._member_seconds, self._windows, self._parameters, study.workers)
        spread = Spread(study.workers, study.backend, study.group)
        self.seen: dict[str, Record] = {}
        self.store = PointStore(out, spread, afford=self.guard, tell=lambda record: self._saw(record, tell))
        self.tuned: dict[Rank, Point] = {}

    def ranks(self) -> list[Rank]:
        """Return the rungs in the order of worth: few tokens and small models first, all recipes of a rung together."""
        study = self.study
        return [Rank(recipe, shape, data) for data in study.data for shape in study.sizes for recipe in study.recipes]

    def plan(self, seconds: float | None) -> Plan:
        """Estimate every rung and take those that fit."""
        return plan([Item(str(rank), self._estimate(rank)) for rank in self.ranks()], seconds)

    def climb(self, whole: Plan) -> list[Rung]:
        """Climb the rungs of the plan, each from the tuned point of its neighbour."""
        taken = {item.name for item in whole.taken}
        rungs: list[Rung] = []
        for rank in self.ranks():
            if str(rank) not in taken:
                continue
            rung = self._climb_one(rank)
            if rung is not None:
                self.tuned[rank] = rung.certificate.point
                rungs.append(rung)
        if not rungs:
            raise ConfigError(
                "the budget affords not even the first rung, which is thought to take "
                f"{self._estimate(self.ranks()[0]):.0f} s; give a longer --budget, fewer epochs or a smaller size"
            )
        return rungs

    def result(self, rungs: list[Rung], whole: Plan) -> dict[str, Any]:
        """Return what result.json holds."""
        rows = [rung.to_dict() for rung in rungs]
        refused = [{"name": item.name, "seconds": item.seconds} for item in (*whole.left_out, *self.guard.refused)]
        return {
            "kind": "pretrain.ladder",
            "rows": rows,
            "laws": laws_of(rows, seed=self.study.seed),
            "points": [point_row(record) for record in self.seen.values()],
            "left_out": refused,
            "corpus": self.corpus.report,
            "corpus_identity": self.corpus.identity,
            "noise_seeds": self.study.noise_seeds,
            "tuned_on": "the first half of the validation split",
            "reported_on": "the front of the test split",
        }

    def _saw(self, record: Record, tell: Tell) -> None:
        self.seen[str(record["key"])] = record
        tell(record)

    def _climb_one(self, rank: Rank) -> Rung | None:
        study, store = self.study, self.store
        try:
            if rank.recipe == "standard":
                return standard(study, store, rank.shape, rank.data, self._start(rank))
            if rank.recipe == "regularised":
                return regularised(study, store, rank.shape, rank.data, self._start(rank))
            single = self.tuned.get(Rank("regularised", rank.shape, rank.data), self._start(rank))
            return ensemble(study, store, rank.shape, rank.data, single, self._taken(rank))
        except ConfigError:
            if self.guard.refused:  # the budget ended inside the rung
                return None
            raise

    def _start(self, rank: Rank) -> Point:
        """The tuned point of the next smaller size, else of the next fewer tokens, else the config's.

        Where points are taken over, that of the same size comes first.
        """
        own = "standard" if rank.recipe == "standard" else "regularised"
        same_data = [known for known in self.tuned if known.recipe == own and known.data == rank.data]
        same_size = [known for known in self.tuned if known.recipe == own and known.shape == rank.shape]
        taken_over = own == "regularised" and not is_searched(self.study, rank.data)
        for candidates in (same_size, same_data) if taken_over else (same_data, same_size):
            if candidates:
                return self.tuned[candidates[-1]]
        return self.study.standard_start if own == "standard" else self.study.start

    def _taken(self, rank: Rank) -> Point | None:
        """The tuned ensemble of the same size at the last budget that is searched, where this one is not."""
        if not self.study.search_ensemble or is_searched(self.study, rank.data):
            return None
        return self.tuned.get(Rank("ensemble", rank.shape, self.study.data[self.study.searched - 1]))

    def _estimate(self, rank: Rank) -> float:
        start = self._start(rank)
        settings = settings_of(self.study, rank.shape, rank.data)
        if rank.recipe == "ensemble":
            settings = replace(settings, epochs=start.epochs * self.study.longer)
            return self.guard.estimate(settings, self.study.members * (5 if self.study.search_ensemble else 1))
        points = _EXPECTED_POINTS if rank.recipe == "regularised" else _EXPECTED_POINTS - 2
        if rank.recipe == "regularised" and not is_searched(self.study, rank.data):
            points = 1
        return self.guard.estimate(replace(settings, epochs=start.epochs), points + self.study.noise_seeds)

    def _member_seconds(self, settings: MembersConfig) -> float:
        return member_seconds(settings, self.out, self.study.group)

    def _parameters(self, settings: MembersConfig) -> int:
        return parameters_of(settings, self.corpus)

    def _windows(self, settings: MembersConfig) -> int:
        return windows_of(settings, self.corpus)
