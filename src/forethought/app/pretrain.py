"""The verbs of pre-training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from forethought.app.arguments import chosen_recipe, parse, say, table
from forethought.app.recipes import PRETRAIN_RECIPES
from forethought.pretrain import FitConfig, fit
from forethought.pretrain.affordable import seconds_of

DEFAULT_RECIPE = "small"


@dataclass(frozen=True)
class FitArguments:
    """Train a language model on text: read, split, tokenise, train, measure, export.

    The run directory holds everything: config, metrics, checkpoints, the model in Hugging Face layout, result.json.
    """

    corpus: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")]
    """Text to learn from: files or folders of .txt, source code, .jsonl or .parquet (each also .gz), a prepared
    corpus, or the word stdlib for the text of the running Python's own standard library."""
    out: Path
    """The run directory to write."""
    settings: Annotated[FitConfig, tyro.conf.arg(name="")]
    recipe: str = DEFAULT_RECIPE
    """The named config that gives every default; `forethought recipes` lists them."""
    steps: int | None = None
    """Optimiser steps; short for --loop.steps."""
    budget: str | None = None
    """Wall-clock time to spend, such as 30m or 2h: as many of the steps as it affords, measured on this machine, and
    what it leaves out is said. None: all of them."""
    exists: Literal["resume", "refuse", "replace"] = "refuse"
    """What to do when the run directory is already there."""
    fallback: bool = False
    """On resume, pass over a damaged checkpoint and take the one before it."""
    json: bool = False
    """Print result.json as one last line on standard output."""


def fit_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought pretrain fit` and return its result.

    Raises:
        InputError: a flag, the corpus or the directory cannot be used.
    """
    name, recipe = chosen_recipe(arguments, PRETRAIN_RECIPES, DEFAULT_RECIPE)
    default = FitArguments(corpus=(), out=tyro.MISSING, settings=recipe, recipe=name)
    given = parse(FitArguments, arguments, verb="pretrain fit", default=default)
    settings = replace(given.settings, sources=given.corpus)
    if given.steps is not None:
        settings = replace(settings, loop=replace(settings.loop, steps=given.steps))
    result = fit(
        settings,
        given.out,
        recipe=f"pretrain.{name}",
        recipe_config=recipe,
        exists=given.exists,
        fallback=given.fallback,
        **affordable(given.budget),
    )
    say(f"{given.out}: {summary(result)}", as_json=given.json)
    return result


def affordable(budget: str | None) -> dict[str, Any]:
    """Return the arguments of a fit for a budget of time, which is said on standard error once it is planned.

    Raises:
        ConfigError: the text is no time.
    """
    if budget is None:
        return {}
    return {"seconds": seconds_of(budget), "tell": lambda plan: sys.stderr.write(f"{plan}\n")}


def interval_note(interval: Sequence[float] | None) -> str:
    """Return an interval in words, or nothing where there were too few windows to have one."""
    return "" if interval is None else f" (95 % interval over windows {interval[0]:.4f} to {interval[1]:.4f})"


def summary(result: dict[str, Any]) -> str:
    """Return the figures of a fit that a person wants to see first."""
    rows = {
        "parameters": result["parameters"],
        "steps": result["steps"],
        "validation": f"{result['validation_loss']:.4f} nats a token, {result['validation_bits_per_byte']:.4f} bits a "
        f"byte{interval_note(result['validation_loss_interval'])}",
        "test": f"{result['test_loss']:.4f} nats a token, {result['test_bits_per_byte']:.4f} bits a byte",
    }
    if "kneser_ney_5_loss" in result:
        rows["baselines"] = (
            f"unigram {result['unigram_loss']:.4f}, 5-gram Kneser-Ney {result['kneser_ney_5_loss']:.4f} nats a token"
        )
    if "tokens_per_second" in result:
        rows["speed"] = f"{result['tokens_per_second']:,.0f} tokens/s while training"
    return "\n" + table(rows)
