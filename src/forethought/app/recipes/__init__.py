"""Recipes: named functions that return a whole config, in tables of their rooms; the list below is the only registry.

The listing reads names and first sentences off the source of the tables, so that it imports no room and no torch. A
table is a literal `{"name": function}` in the module that defines the functions.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module, util
from pathlib import Path
from typing import Annotated, Any

import tyro

from forethought.app.arguments import leaves, parse, say
from forethought.core.config import difference, to_dict
from forethought.core.errors import unknown_name

_TABLES = (
    ("pretrain", "forethought.app.recipes.pretrain", "PRETRAIN_RECIPES"),
    ("pretrain", "forethought.app.recipes.pretrain", "MEMBERS_RECIPES"),
    ("pretrain", "forethought.app.recipes.pretrain", "STUDY_RECIPES"),
    ("pretrain", "forethought.app.recipes.pretrain", "CONTINUE_RECIPES"),
    ("world", "forethought.app.world.recipes", "WORLD_RECIPES"),
)

__all__ = ["RECIPES", "recipes_verb"]


@dataclass(frozen=True)
class _Listed:
    module: str
    table: str
    name: str
    summary: str


@cache
def _listed() -> dict[str, _Listed]:
    found: dict[str, _Listed] = {}
    for room, module, table in _TABLES:
        for name, summary in _read_table(module, table):
            found[f"{room}.{name}"] = _Listed(module, table, name, summary)
    return found


def _read_table(module: str, table: str) -> Iterator[tuple[str, str]]:
    """Yield names and first sentences of a table of recipes, in its order, from the source."""
    spec = util.find_spec(module)
    tree = ast.parse(Path(str(spec and spec.origin)).read_text(encoding="utf-8"))
    texts = {each.name: ast.get_docstring(each) or "" for each in tree.body if isinstance(each, ast.FunctionDef)}
    for each in tree.body:
        if not (isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.target.id == table):
            continue
        if isinstance(each.value, ast.Dict):
            for key, value in zip(each.value.keys, each.value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Name):
                    yield str(key.value), texts[value.id].strip().partition("\n")[0]


class _Recipes(Mapping[str, Callable[[], Any]]):
    """All recipes by name; a room is imported when one of its recipes is asked for."""

    def __getitem__(self, name: str) -> Callable[[], Any]:
        listed = _listed()[name]
        return getattr(import_module(listed.module), listed.table)[listed.name]

    def __iter__(self) -> Iterator[str]:
        return iter(_listed())

    def __len__(self) -> int:
        return len(_listed())


RECIPES: Mapping[str, Callable[[], Any]] = _Recipes()


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
        summaries = {name: listed.summary for name, listed in _listed().items()}
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


def __getattr__(name: str) -> Any:
    """Give the tables of pre-training under the names that the verbs import, without importing them for the listing."""
    if name == "PRETRAIN_RECIPES":
        return import_module("forethought.app.recipes.pretrain").PRETRAIN_RECIPES
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
