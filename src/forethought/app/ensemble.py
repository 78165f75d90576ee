"""The verb that trains and scores ensembles: members from text, or any finished runs of members together."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from forethought.app.arguments import chosen_recipe, parse, say, table
from forethought.app.recipes.pretrain import MEMBERS_RECIPES
from forethought.core.artefact import read_kind
from forethought.core.config import from_dict
from forethought.core.errors import ConfigError
from forethought.core.run import open_run
from forethought.data import open_corpus
from forethought.nn import load_language_model
from forethought.pretrain.export import write_card
from forethought.pretrain.members import MembersConfig, seeds, train_members
from forethought.pretrain.scores import (
    average_loss,
    joined,
    learned_weights,
    logit_average_loss,
    open_scores,
    subset_curve,
)
from forethought.pretrain.slices import held_out_slices
from forethought.pretrain.study import MembersBudget, seconds_of

DEFAULT_RECIPE = "members"


@dataclass(frozen=True)
class EnsembleArguments:
    """Train members of one shape as one batched model and score their ensemble, or score finished runs with --of.

    Probabilities are averaged; logits too, for comparison. Weights are learned on a slice that neither tunes nor
    reports.
    """

    settings: Annotated[MembersConfig, tyro.conf.arg(name="")]
    corpus: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")] = ()
    """Text as for `pretrain fit`, or one prepared corpus; not needed with --of."""
    out: Path | None = None
    """The run directory to write; not needed with --of."""
    of: tuple[Path, ...] = ()
    """Finished runs of members to score together, instead of training."""
    only: tuple[str, ...] = ()
    """Candidates to use (RUN/NAME as they are listed); none: all."""
    recipe: str = DEFAULT_RECIPE
    """members, averaged, snapshots or frontier."""
    count: int | None = None
    """Members that differ by seed; None: the recipe's."""
    vary: Literal["both", "init", "order"] = "both"
    """What differs: first weights, the order of the data, or both."""
    budget: str | None = None
    """Wall-clock time to spend, such as 30m or 2h: as many of the members as it affords. None: all of them."""
    exists: Literal["resume", "refuse", "replace"] = "refuse"
    """What to do when the run directory is already there."""
    json: bool = False
    """Print the result as one last line on standard output."""


def ensemble_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought pretrain ensemble` and return its result.

    Raises:
        InputError: a flag, the corpus, a run or the directory cannot be used.
    """
    name, recipe = chosen_recipe(arguments, MEMBERS_RECIPES, DEFAULT_RECIPE)
    default = EnsembleArguments(settings=recipe, recipe=name)
    given = parse(EnsembleArguments, arguments, verb="pretrain ensemble", default=default)
    if given.of:
        result = score_runs(given.of, given.only)
    else:
        result = _train(given, name)
    say(ensemble_summary(result), as_json=given.json)
    return result


def score_runs(runs: Sequence[Path], only: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the candidates of some runs are worth together.

    Raises:
        ConfigError: a run is no finished run of members, or the runs were scored on different text.
    """
    for run in runs:
        if read_kind(run) != "run" or (open_run(run)["result"] or {}).get("kind") != "pretrain.members":
            raise ConfigError(f"{run} is no finished run of members; give one that `pretrain ensemble` wrote")
    labels = [run.name for run in runs]
    if len(set(labels)) != len(labels):
        raise ConfigError(f"two runs have one name: {', '.join(labels)}; candidates are named by their run")
    scores = joined({run.name: open_scores(run / "scores") for run in runs})
    names = list(only) or list(scores.names)
    report, tune, fit_slice = (scores.rows(name, names) for name in ("report", "tune", "weights"))
    weights = learned_weights(fit_slice)
    return {
        "kind": "pretrain.ensemble",
        "candidates": {name: float(-row.mean(dtype="f8")) for name, row in zip(names, report, strict=True)},
        "mean_single_loss": float(-report.mean(dtype="f8")),
        "ensemble_loss": average_loss(report),
        "ensemble_tuning_loss": average_loss(tune),
        "curve": subset_curve(report),
        "weights": dict(zip(names, weights, strict=True)),
        "weighted_loss": average_loss(report, weights),
        "logit_loss": _logit_loss(runs, names),
        "tokens": report.shape[1],
    }


def model_places(runs: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Return the model directories of candidates named RUN/NAME."""
    by_name = {run.name: run for run in runs}
    return [by_name[name.partition("/")[0]] / "models" / name.partition("/")[2] for name in names]


def ensemble_summary(result: dict[str, Any]) -> str:
    """Return the figures of an ensemble for a person."""
    curve = " ".join(f"{loss:.4f}" for loss in result["curve"])
    return table(
        {
            "members": len(result["candidates"]),
            "one member": f"{result['mean_single_loss']:.4f} nats a token on average",
            "probabilities": f"{result['ensemble_loss']:.4f} averaged over {result['tokens']:,} held-out tokens",
            "logits": f"{result['logit_loss']:.4f} averaged",
            "learned weights": f"{result['weighted_loss']:.4f}",
            "by number": curve,
        }
    )


def _train(given: EnsembleArguments, recipe: str) -> dict[str, Any]:
    if given.out is None or not given.corpus:
        raise ConfigError("give CORPUS and --out to train members, or --of RUN ... to score finished ones")
    settings = replace(given.settings, fit=replace(given.settings.fit, sources=given.corpus))
    if given.count is not None or given.vary != "both":
        count = given.count or len(settings.members)
        settings = replace(settings, members=seeds(count, first=settings.fit.seed, vary=given.vary))
    budget = None
    if given.budget is not None:
        budget = MembersBudget(
            seconds_of(given.budget), time.monotonic(), tell=lambda plan: sys.stderr.write(f"{plan}\n")
        )
    trained = train_members(settings, given.out, recipe=f"pretrain.{recipe}", exists=given.exists, afford=budget)
    # A single model without averages is an ensemble of one: all figures then agree.
    scored = score_runs([given.out], given.only)
    write_card(given.out, trained, recipe=f"pretrain.{recipe}", ensemble=scored)
    result = scored | {"out": str(given.out), "steps": trained["steps"]}
    if budget is not None and budget.plan is not None:
        result["budget"] = asdict(budget.plan)
    return result


def _logit_loss(runs: Sequence[Path], names: Sequence[str]) -> float:
    opened = open_run(runs[0])
    settings = from_dict(MembersConfig, opened["config"]["config"], source=str(runs[0] / "config.json"))
    source = runs[0] / "corpus"
    corpus = open_corpus(source if source.is_dir() else settings.fit.sources[0])
    report = held_out_slices(corpus, settings.fit.evaluation_tokens)["report"]
    models = [load_language_model(place) for place in model_places(runs, names)]
    return logit_average_loss(models, report, batch_size=settings.fit.batch_size, context=settings.fit.context)
