"""Recipes: named functions that return a whole config. The table below is the only registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from forethought.app.arguments import leaves, parse, say
from forethought.app.recipes.pretrain import CONTINUE_RECIPES, MEMBERS_RECIPES, PRETRAIN_RECIPES, STUDY_RECIPES
from forethought.core.config import difference, to_dict
from forethought.core.errors import unknown_name

_PRETRAIN = {**PRETRAIN_RECIPES, **MEMBERS_RECIPES, **STUDY_RECIPES, **CONTINUE_RECIPES}
RECIPES: dict[str, Callable[[], Any]] = {f"pretrain.{name}": recipe for name, recipe in _PRETRAIN.items()}

__all__ = ["PRETRAIN_RECIPES", "RECIPES", "recipes_verb"]


@dataclass(frozen=True)
class RecipesArguments:
    """List the recipes; with a name show its config, with --against what it changes in another."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """A recipe, such as pretrain.small."""
    against: str | None = None
    """Another recipe to compare with."""
    json: bool = False
    """Print the result as one last line of JSON."""


def recipes_verb(arguments: list[str]) -> dict[str, Any]:
    """List recipes, show one, or show the difference between two.

    Raises:
        ConfigError: no recipe of that name.
    """
    given = parse(RecipesArguments, arguments, verb="recipes")
    if given.name is None:
        summaries = {name: (recipe.__doc__ or "").strip().splitlines()[0] for name, recipe in RECIPES.items()}
        say("\n".join(f"  {name.ljust(20)} {text}" for name, text in summaries.items()), as_json=given.json)
        return summaries
    chosen = _recipe(given.name)
    result = to_dict(chosen) if given.against is None else difference(chosen, _recipe(given.against))
    say(leaves(result), as_json=given.json)
    return result


def _recipe(name: str) -> Any:
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()
