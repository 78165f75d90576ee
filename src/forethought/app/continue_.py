"""The verb of continued pre-training: a base model on a domain, and what that is worth in domain text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from forethought.app.arguments import chosen_recipe, parse, say, table
from forethought.app.ladder import ends, measured_words
from forethought.app.recipes.pretrain import CONTINUE_RECIPES
from forethought.core.artefact import resolve
from forethought.pretrain.continued import ContinueConfig, continue_training
from forethought.pretrain.study import seconds_of

DEFAULT_RECIPE = "continue"


@dataclass(frozen=True)
class ContinueArguments:
    """Continue a model's training on a domain: several passes with decay and replay, against one plain pass over more.

    The corpus is prepared with the base's own tokenizer.
    """

    corpus: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")]
    """Text of the domain, or one prepared corpus with the base's tokenizer."""
    out: Path
    """The run directory to write."""
    settings: Annotated[ContinueConfig, tyro.conf.arg(name="")]
    recipe: str = DEFAULT_RECIPE
    """The named config that gives every default."""
    budget: str | None = None
    """Wall-clock time to spend, such as 30m or 2h: the recipe first, then plain runs on more and more text; what it
    does not afford is named and left out. None: all of it."""
    exists: Literal["resume", "refuse", "replace"] = "refuse"
    """What to do when the run directory is already there."""
    json: bool = False
    """Print result.json as one last line on standard output."""


def continue_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought pretrain continue` and return its result.

    Raises:
        InputError: a flag, the base, the corpus or the directory cannot be used.
    """
    name, recipe = chosen_recipe(arguments, CONTINUE_RECIPES, DEFAULT_RECIPE)
    default = ContinueArguments(corpus=(), out=tyro.MISSING, settings=recipe, recipe=name)
    given = parse(ContinueArguments, arguments, verb="pretrain continue", default=default)
    settings = given.settings
    tokenizer = str(resolve(settings.base)[1]) if settings.base else ""
    fit = replace(settings.fit, sources=given.corpus, corpus=replace(settings.fit.corpus, tokenizer=tokenizer))
    seconds = None if given.budget is None else seconds_of(given.budget)
    result = continue_training(
        replace(settings, fit=fit), given.out, recipe=f"pretrain.{name}", exists=given.exists, seconds=seconds
    )
    say(f"{given.out}:\n{continue_summary(result)}", as_json=given.json)
    return result


def continue_summary(result: dict[str, Any]) -> str:
    """Return the arms of the comparison for a person."""
    rows: dict[str, object] = {"base": f"{result['base_loss']:.4f} nats a token on the domain"}
    for row in result["plain"]:
        rows[f"plain, {row['data']:,}"] = f"{row['loss']:.4f} (seed sd {row['seed_sd']:.4f})"
    recipe = result["recipe"]
    rows[f"recipe, {recipe['data']:,}"] = f"{recipe['loss']:.4f} (seed sd {recipe['seed_sd']:.4f})"
    rows |= {"ensemble": f"{result['ensemble_loss']:.4f}", "soup": f"{result['soup_loss']:.4f}"}
    efficiency = result["efficiency"]
    for name in ("single", "ensemble", "soup"):
        if name in efficiency:
            found = efficiency[name]
            by_law = (
                f"{found['multiplier']:.2f}x the domain text (95 % {ends(found['interval'])})"
                if found["identified"]
                else f"not identified: {found['reason']}"
            )
            rows[f"worth, {name}"] = f"{by_law}; {measured_words(found['measured'])}"
    if "reason" in efficiency:
        rows["worth"] = efficiency["reason"]
    for number, item in enumerate(result.get("left_out", []), start=1):
        rows[f"left out, {number}"] = item["name"]
    return table(rows)
