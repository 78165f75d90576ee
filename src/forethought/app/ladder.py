"""The verb that climbs the ladder: recipes over sizes and data budgets, as far as the time goes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from forethought.app.arguments import chosen_recipe, parse, say
from forethought.app.pretrain_table import PointTable
from forethought.app.recipes.pretrain import STUDY_RECIPES, shape
from forethought.core.errors import ConfigError
from forethought.pretrain import ModelShape
from forethought.pretrain.study import StudyConfig, ladder, seconds_of

DEFAULT_RECIPE = "joint"


@dataclass(frozen=True)
class LadderArguments:
    """Tune recipes over sizes and data budgets, each point with a certificate, and fit the laws they follow.

    What was trained is kept by a hash of its config and data: the same command, or one with a longer budget and
    --exists resume, trains only what is new.
    """

    corpus: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")]
    """Text as for `pretrain fit`, or one prepared corpus."""
    out: Path
    """The run directory to write."""
    settings: Annotated[StudyConfig, tyro.conf.arg(name="")]
    recipe: str = DEFAULT_RECIPE
    """standard, regularised, ensemble or joint."""
    budget: str | None = None
    """Time to spend, such as 30m or 2h; what it does not afford is named and left out. None: all of it."""
    sizes: tuple[str, ...] = ()
    """Shapes as WIDTHxLAYERS, smallest first, such as 64x2 128x4 256x4; none: the recipe's."""
    cache: Path | None = None
    """A directory of trained points that several ladders on one corpus share; None: the run directory."""
    exists: Literal["resume", "refuse", "replace"] = "refuse"
    """What to do when the run directory is already there."""
    json: bool = False
    """Print result.json as one last line on standard output."""


def ladder_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought pretrain ladder` and return its result.

    Raises:
        InputError: a flag, the corpus or the directory cannot be used.
    """
    name, recipe = chosen_recipe(arguments, STUDY_RECIPES, DEFAULT_RECIPE)
    default = LadderArguments(corpus=(), out=tyro.MISSING, settings=recipe, recipe=name)
    given = parse(LadderArguments, arguments, verb="pretrain ladder", default=default)
    study = replace(given.settings, fit=replace(given.settings.fit, sources=given.corpus))
    if given.sizes:
        study = replace(study, sizes=tuple(shape_of(text) for text in given.sizes))
    seconds = None if given.budget is None else seconds_of(given.budget)
    with PointTable() as table:
        result = ladder(
            study,
            given.out,
            recipe=f"pretrain.{name}",
            exists=given.exists,
            seconds=seconds,
            cache=given.cache,
            tell=table.tell,
            planned=table.planned,
        )
    say(f"{given.out}:\n{ladder_summary(result)}", as_json=given.json)
    return result


def shape_of(text: str) -> ModelShape:
    """Return the shape of WIDTHxLAYERS, with heads of 64.

    Raises:
        ConfigError: the text is no such shape.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,3})", text)
    if match is None:
        raise ConfigError(f"size {text!r} is no shape; give WIDTHxLAYERS such as 64x2")
    return shape(int(match[1]), int(match[2]))


def ladder_summary(result: dict[str, Any]) -> str:
    """Return the rungs, what was left out and the multipliers, for a person."""
    lines = [
        f"  {row['recipe']:<12} {row['shape']:>7} {row['data']:>10,} tokens  loss {row['loss']:.4f} "
        f"(seed sd {row['seed_sd']:.4f}, {len(row['seed_losses'])} seeds)  {row['verdict']}"
        for row in result["rows"]
    ]
    lines += [f"  left out: {item['name']}" for item in result["left_out"]]
    return "\n".join([*lines, *efficiency_lines(result["laws"])])


def efficiency_lines(laws: dict[str, Any]) -> list[str]:
    """Return the data-efficiency multipliers, by law and by measured losses, or why there are none."""
    lines: list[str] = []
    for entry in laws["efficiency"]:
        if "recipe" not in entry:
            lines.append(f"  data efficiency: {entry['reason']}")
            continue
        where = f"  {entry['recipe']} at {entry['data']:,} tokens:"
        if entry["identified"]:
            kind = "extrapolated" if entry["extrapolated"] else "within the data that was measured"
            lines.append(f"{where} {entry['multiplier']:.2f}x the data (95 % {ends(entry['interval'])}; {kind})")
        else:
            lines.append(f"{where} not identified, {entry['reason']}")
        lines.append(f"{where} {measured_words(entry['measured'])}")
    return lines


def measured_words(measured: dict[str, Any]) -> str:
    """Return a multiplier that no law went into, in words."""
    if measured["multiplier"] is None:
        return f"more than {measured['at_least']:.2f}x by measured losses, the largest budget of the standard recipe"
    return f"{measured['multiplier']:.2f}x by measured losses (95 % {ends(measured['interval'])})"


def ends(interval: list[float | None]) -> str:
    """Return the ends of an interval in words; one that nothing bounds is said to be so."""
    low, high = ("no bound" if end is None else f"{end:.2f}" for end in interval)
    return f"{low} to {high}"
