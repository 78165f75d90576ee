"""The verb that distils: a draft for a given target, and how well it fits that target on text neither has seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from forethought.app.arguments import chosen_recipe, parse, say, table
from forethought.app.pretrain import affordable
from forethought.app.recipes import PRETRAIN_RECIPES
from forethought.core.artefact import ARTEFACT, read_kind
from forethought.core.errors import ConfigError
from forethought.core.run import open_run
from forethought.data import open_corpus
from forethought.decode import ServedModel, acceptance, open_model
from forethought.nn import TransformerConfig, num_parameters
from forethought.pretrain import FitConfig, ModelShape, fit

DEFAULT_RECIPE = "draft"
AGREEMENT_TOKENS = 16_384
# A draft step should cost about a tenth of a target's: below that little is left to hide, above it drafts come late.
TARGET_SHARE = 0.1


@dataclass(frozen=True)
class DistilArguments:
    """Distil a draft from a target: the small model learns the target's soft labels, and its acceptance is measured.

    With --from-run RUN instead of --draft-for, the members of an ensemble are distilled into one member's size:
    `forethought pretrain distil --from-run RUN --help` shows that form's options.
    """

    settings: Annotated[FitConfig, tyro.conf.arg(name="")]
    draft_for: Path
    """The target: a run of `pretrain fit` or a model directory."""
    out: Path
    """The run directory to write."""
    corpus: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")] = ()
    """Text in the target's domain, as for `pretrain fit`; none: the corpus that the target's own run kept."""
    recipe: str = DEFAULT_RECIPE
    """The named config that gives every default; `forethought recipes` lists them."""
    steps: int | None = None
    """Optimiser steps; short for --loop.steps."""
    budget: str | None = None
    """Wall-clock time to spend, such as 30m: as many of the steps as it affords. None: all of them."""
    exists: Literal["resume", "refuse", "replace"] = "refuse"
    """What to do when the run directory is already there."""
    json: bool = False
    """Print the result as one last line on standard output."""


def distil_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought pretrain distil` and return its result.

    Raises:
        InputError: a flag, the target, the corpus or the directory cannot be used.
    """
    if any(argument.partition("=")[0] == "--from-run" for argument in arguments):
        from forethought.app.pretrain_students import students_verb

        return students_verb(arguments)
    name, recipe = chosen_recipe(arguments, PRETRAIN_RECIPES, DEFAULT_RECIPE)
    default = DistilArguments(settings=recipe, draft_for=tyro.MISSING, out=tyro.MISSING, recipe=name)
    given = parse(DistilArguments, arguments, verb="pretrain distil", default=default)
    target = open_model(given.draft_for)
    settings = settings_for(given.settings, recipe, target, given.draft_for, given.corpus)
    if given.steps is not None:
        settings = replace(settings, loop=replace(settings.loop, steps=given.steps))
    result = fit(
        settings,
        given.out,
        recipe=f"pretrain.{name}",
        recipe_config=recipe,
        exists=given.exists,
        title="draft",
        **affordable(given.budget),
    )
    place = Path(settings.sources[0]) if given.corpus == () else given.out / "corpus"
    result = result | {"kind": "pretrain.distil", "draft_for": str(given.draft_for)}
    result |= held_out_acceptance(target, open_model(given.out), place, settings.context, AGREEMENT_TOKENS)
    say(f"{given.out}: {summary(result)}", as_json=given.json)
    return result


def settings_for(
    settings: FitConfig, recipe: FitConfig, target: ServedModel, directory: Path, corpus: tuple[str, ...]
) -> FitConfig:
    """Return the config of a draft for a target: its teacher, its tokenizer, its context, and a shape that fits.

    Raises:
        ConfigError: no corpus was given and the target's directory keeps none.
    """
    if not corpus:
        corpus = (_own_corpus(directory),)
    if settings.model == recipe.model:
        settings = replace(settings, model=draft_shape(target.model.config))
    return replace(
        settings,
        sources=corpus,
        corpus=replace(settings.corpus, tokenizer=str(target.directory)),
        teacher=str(target.directory),
        max_positions=target.model.config.max_positions,
        context=min(settings.context, target.model.config.max_positions),
    )


def draft_shape(target: TransformerConfig) -> ModelShape:
    """Return the widest two-layer model of at most a tenth of the target's parameters, with heads of 32 or 64."""
    budget = TARGET_SHARE * num_parameters(target).total
    best = ModelShape(hidden_size=32, num_layers=1, num_heads=1)
    for width in range(64, target.hidden_size, 32):
        heads = width // 64 if width % 64 == 0 else width // 32
        shape = ModelShape(hidden_size=width, num_layers=2, num_heads=heads, rope_theta=target.rope_theta)
        if num_parameters(shape.transformer(target.vocab_size, target.max_positions)).total <= budget:
            best = shape
    return best


def held_out_acceptance(
    target: ServedModel, draft: ServedModel, corpus: Path, context: int, num_tokens: int
) -> dict[str, Any]:
    """Measure on held-out text how often the two greedy tokens are the same, and how far the two laws overlap."""
    tokens = np.asarray(open_corpus(corpus).test.tokens[:num_tokens], dtype=np.int64)
    whole = len(tokens) // context * context
    measured = acceptance(target.model, draft.model, torch.from_numpy(tokens[:whole].reshape(-1, context)))
    return {
        "held_out_tokens": measured.num_tokens,
        "held_out_greedy_agreement": measured.greedy_agreement,
        "held_out_overlap": measured.overlap,
    }


def summary(result: dict[str, Any]) -> str:
    """Return the figures of a draft that a person wants to see first."""
    return "\n" + table(
        {
            "parameters": result["parameters"],
            "validation": f"{result['validation_loss']:.4f} nats a token",
            "acceptance": f"{result['held_out_overlap']:.3f} of a drafted token is kept at temperature 1",
            "greedy": f"{result['held_out_greedy_agreement']:.3f} of greedy tokens are the target's",
            "measured on": f"{result['held_out_tokens']:,} held-out tokens",
        }
    )


def _own_corpus(directory: Path) -> str:
    """Return the prepared corpus that a run was trained on: its own, or the one it was given."""
    if (directory / "corpus").is_dir():
        return str(directory / "corpus")
    if (directory / "config.json").is_file() and read_kind(directory) == "run":
        sources = open_run(directory)["config"]["config"].get("sources", ())
        if len(sources) == 1 and (Path(sources[0]) / ARTEFACT).is_file():
            return str(sources[0])
    raise ConfigError(f"{directory} keeps no corpus of its own; name text in its domain: pretrain distil CORPUS ...")
