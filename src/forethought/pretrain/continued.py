"""Continued pre-training: a base model, a domain, a share of replay, and how much domain text the recipe is worth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from pydantic import Field

from forethought.core import files
from forethought.core.config import config
from forethought.core.errors import ConfigError, InputError
from forethought.core.run import Exists, Run
from forethought.data import Corpus
from forethought.nn import LanguageModel, load_language_model
from forethought.pretrain.config import FitConfig
from forethought.pretrain.inputs import check_corpus, open_or_prepare
from forethought.pretrain.members import Member, MembersConfig, seeds
from forethought.pretrain.members.spread import Spread
from forethought.pretrain.scores import average_loss, token_log_probabilities
from forethought.pretrain.slices import held_out_slices
from forethought.pretrain.study.afford import guard_of, shape_of_model
from forethought.pretrain.study.laws import NUM_BOOTSTRAP, sd_of_loss
from forethought.pretrain.study.limits import band, worth
from forethought.pretrain.study.points import PointStore, Record
from forethought.pretrain.study.recipes import rows_of
from forethought.pretrain.study.search import Grid, Point, search
from forethought.stats import fit_power_law
from forethought.stats.powerlaw import PowerLaw
from forethought.train import Parallel

PLAIN, RECIPE = "plain", "recipe"


@config
class ContinueConfig:
    """A recipe on little domain text, and plain continued training on more and more of it to compare with."""

    fit: FitConfig = FitConfig()
    """The domain corpus (prepared with the base's tokenizer) and what all runs share; the base gives the shape."""
    base: str = ""
    """A model directory, ours or Hugging Face."""
    replay: str | None = None
    """A prepared corpus of the base's own domain, replayed against forgetting."""
    replay_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    data: int = Field(default=65_536, ge=1)
    """Domain tokens of the recipe."""
    epochs: float = Field(default=4.0, gt=0.0)
    """Passes of the recipe over them."""
    lr: float = Field(default=1e-3, gt=0.0)
    tau: float = Field(default=20.0, gt=0.0)
    """The recipe's decay, as memory in epochs: many of them, or the base itself is forgotten (the paper's is 21)."""
    members: int = Field(default=4, ge=2)
    """Members of the recipe, which differ in the order of the data (they share the base's weights)."""
    grid: Annotated[Grid | None, tyro.conf.Suppress] = None
    """Search the recipe's memory, rate and passes on this grid, from the values above, by the slice that tunes; None:
    take the values above."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    plain_data: tuple[int, ...] = (65_536, 131_072, 262_144, 524_288)
    """Domain tokens of the plain runs: one epoch, small decay."""
    plain_decay: float = Field(default=0.1, ge=0.0)
    plain_lrs: tuple[float, ...] = Field(default=(1e-3,), min_length=1)
    """Rates of the plain runs; each budget takes the one that is best on the slice that tunes."""
    noise_seeds: int = Field(default=3, ge=3)
    workers: int = Field(default=1, ge=1)
    group: int = Field(default=0, ge=0)
    """Members a batch; 0: the faster size, measured."""
    seed: int = Field(default=0, ge=0)

    def __post_init__(self) -> None:
        if (self.replay is None) != (self.replay_share == 0.0):
            raise ConfigError("replay and replay_share go together; give a prepared corpus and a share, or neither")


def continue_training(
    settings: ContinueConfig,
    out: Path | str,
    *,
    recipe: str = "continue",
    exists: Exists = "refuse",
    seconds: float | None = None,
    cache: Path | None = None,
    tell: Callable[[Record], None] = lambda _record: None,
) -> dict[str, Any]:
    """Train the recipe and the plain runs from the base, and return their losses, soup and data efficiency.

    `seconds` is a budget: the recipe comes first, then plain runs on more and more text while they fit; what is left
    out is named in the result, and a finished comparison that left something out goes on where it stopped. Killed or
    interrupted, the same call with exists="resume" goes on. Trained points lie in `cache`, which comparisons on one
    corpus may share; None: in `out`.

    Raises:
        ConfigError: no base, or its vocabulary or context does not fit the corpus.
        InputError: the corpus, the config or the directory cannot be used.
        InterruptedRunError: interrupted and saved.
    """
    if not settings.base:
        raise ConfigError("continued pre-training starts from a model; name its directory with --base")
    out, started = Path(out), time.monotonic()
    with Run.open(out, config=settings, recipe=recipe, exists=exists, allow=("workers", "group")) as run:
        finished = run.result()
        if finished is not None and not finished.get("left_out"):
            return finished
        try:
            corpus = open_or_prepare(settings.fit, out, Parallel(torch.device("cpu")))
            check_corpus(run, corpus)
        except InputError:
            run.discard()
            raise
        work = _Continued(settings, corpus, cache or out, tell, seconds)
        work.guard.started = started  # reading and tokenising are part of the budget
        result = work.result()
        run.write_result(result)
        return result


class _Continued:
    """The arms of a comparison, all from one base."""

    def __init__(
        self,
        settings: ContinueConfig,
        corpus: Corpus,
        root: Path,
        tell: Callable[[Record], None],
        seconds: float | None = None,
    ) -> None:
        self.settings, self.corpus = settings, corpus
        files.make_directory(root)
        self.fit = replace(settings.fit, sources=(str(corpus.path),))
        self.guard = guard_of(seconds, corpus, root, group=settings.group, workers=settings.workers)
        spread = Spread(workers=settings.workers, group=settings.group)
        self.store = PointStore(root, spread, tell=tell)
        if seconds is not None:
            self.store.afford = self._afford

    def result(self) -> dict[str, Any]:
        settings = self.settings
        point, verdict = self._tuned()
        records = self._recipe(point)
        if len(records) < settings.members:
            raise ConfigError(
                "the budget does not afford the recipe's own members; give a longer --budget, fewer epochs or members"
            )
        found = {data: self._plain(data) for data in settings.plain_data}
        plain = [self._row(PLAIN, own, data) for data, own in found.items() if own]
        single = verdict | self._row(RECIPE, records, settings.data)
        ensemble = average_loss(rows_of(self.store, records, "report"))
        soup = self._soup(records)
        return {
            "kind": "pretrain.continue",
            "base": settings.base,
            "base_loss": self._base_loss(),
            "plain": plain,
            "recipe": single,
            "ensemble_loss": ensemble,
            "soup_loss": soup,
            "replay_share": settings.replay_share,
            "efficiency": self._efficiency(
                plain, {"single": float(single["loss"]), "ensemble": ensemble, "soup": soup}, sd_of_loss(single)
            ),
            "left_out": [{"name": item.name, "seconds": item.seconds} for item in self.guard.refused],
            "corpus": self.corpus.report,
        }

    def _afford(self, settings: MembersConfig, members: int) -> bool:
        # The base gives the shape, whatever the config of the fit says.
        model = shape_of_model(self.settings.base)
        return self.guard(replace(settings, fit=replace(settings.fit, model=model)), members)

    def _plain(self, data: int) -> list[Record]:
        """Train one pass at a small decay: what one does without a recipe, at the best of the rates; none: no time."""
        settings = self.settings
        arms = [self._plain_at(data, lr) for lr in settings.plain_lrs]
        # The best of some of the rates would be another baseline.
        if any(len(records) < settings.noise_seeds for records in arms):
            return []
        return min(arms, key=lambda records: statistics.fmean(float(record["tune_loss"]) for record in records))

    def _plain_at(self, data: int, lr: float) -> list[Record]:
        settings = self.settings
        optimiser = replace(self.fit.optimiser, lr=lr, tau=None, weight_decay=settings.plain_decay)
        members = seeds(settings.noise_seeds, first=settings.seed)
        plain = MembersConfig(
            fit=replace(self.fit, optimiser=optimiser),
            members=members,
            epochs=1.0,
            train_tokens=data,
            base=settings.base,
        )
        return [record for record in self.store.train(plain) if record is not None]

    def _tuned(self) -> tuple[Point, dict[str, Any]]:
        """The recipe's point, searched where there is a grid, and its certificate."""
        settings = self.settings
        start = Point(tau=settings.tau, lr=settings.lr, epochs=settings.epochs)
        if settings.grid is None:
            return start, {"verdict": "not searched"}
        own = self._own(())
        found, _ = search(start, settings.grid, lambda points: self.store.evaluate(own, points, seed=settings.seed))
        verdict = found.to_dict()
        return found.point, verdict | {"tune_loss": verdict.pop("loss")}

    def _recipe(self, point: Point) -> list[Record]:
        """Train several passes with stronger decay, replay, and members that differ in order."""
        first = self.settings.seed + 1  # the seed that won the search is lucky
        members = seeds(self.settings.members, first=first, lr=point.lr, tau=point.tau)
        own = replace(self._own(members), epochs=point.epochs)
        return [record for record in self.store.train(own) if record is not None]

    def _own(self, members: tuple[Member, ...]) -> MembersConfig:
        settings = self.settings
        own = MembersConfig(
            fit=self.fit,
            members=members or (Member(seed=settings.seed),),
            train_tokens=settings.data,
            base=settings.base,
            mixture=settings.replay,
            mixture_share=settings.replay_share,
        )
        return replace(own, frontier=replace(own.frontier, dropout=settings.dropout))

    def _row(self, arm: str, records: Sequence[Record], data: int) -> dict[str, Any]:
        losses = [float(record["report_loss"]) for record in records]
        return {
            "arm": arm,
            "data": data,
            "lr": float(records[0]["lr"]),
            "loss": statistics.fmean(losses),
            "seed_losses": losses,
            "seed_sd": statistics.stdev(losses),
        }

    def _efficiency(self, plain: Sequence[Mapping[str, Any]], losses: Mapping[str, float], sd: float) -> dict[str, Any]:
        """How much domain text plain training needs for each loss: by its law, and by its measured losses alone."""
        settings, found = self.settings, {}
        points = [(int(row["data"]), float(row["loss"]), sd_of_loss(row)) for row in plain]
        law: PowerLaw | str
        try:
            if not points:
                raise ConfigError("the budget afforded no plain run")
            x, y, sds = zip(*points, strict=True)
            millions = [each / 1e6 for each in x]
            noise = sds if all(sds) else None
            law = fit_power_law(millions, y, noise, seed=settings.seed, num_bootstrap=NUM_BOOTSTRAP)
            found["law"] = {**law.to_dict(), "band": band(law, millions)}
        except (InputError, ValueError) as error:
            law = f"the law of plain training is not fitted: {error}"
            found["reason"] = law
        for name, loss in losses.items() if points else ():
            found[name] = worth(name, [(settings.data, loss, sd)], points, law, seed=settings.seed)[0]
        return found

    def _soup(self, records: Sequence[Record]) -> float:
        """The loss of the mean of the members' weights, which works where all began at one base."""
        models = [load_language_model(self._place(record)) for record in records]
        return self._loss(average_weights(models))

    def _base_loss(self) -> float:
        return self._loss(load_language_model(self.settings.base, dtype=torch.float32))

    def _loss(self, model: LanguageModel) -> float:
        report = held_out_slices(self.corpus, self.fit.evaluation_tokens)["report"]
        logs = token_log_probabilities(model, report, batch_size=self.fit.batch_size, context=self.fit.context)
        return float(-logs.mean(dtype="f8"))

    def _place(self, record: Record) -> Path:
        return self.store.root / "runs" / str(record["run"]) / "models" / str(record["name"])


@torch.no_grad()
def average_weights(models: Sequence[LanguageModel]) -> LanguageModel:
    """Return a model whose weights are the mean of the given ones.

    Raises:
        ConfigError: no models, or models of different shapes.
    """
    if not models or any(model.config.resolved != models[0].config.resolved for model in models):
        raise ConfigError("weights are averaged over one or more models of one shape")
    soup = LanguageModel(models[0].config).eval()
    named = [dict(model.named_parameters()) for model in models]
    for name, parameter in soup.named_parameters():
        parameter.copy_(torch.stack([own[name].float() for own in named]).mean(0))
    return soup
