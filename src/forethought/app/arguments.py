"""Arguments of verbs: plain dataclasses read by tyro, where a recipe gives the defaults and flags override leaves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import tyro

from forethought.core.config import flatten
from forethought.core.errors import unknown_name

T = TypeVar("T")


def parse(shape: type[T], arguments: list[str], *, verb: str, default: T | None = None) -> T:
    """Read a verb's arguments into a dataclass; --help prints and leaves with status 0, a bad flag with 2."""
    settings: dict[str, Any] = {"prog": f"forethought {verb}", "config": (tyro.conf.FlagCreatePairsOff,)}
    if default is None:
        return tyro.cli(shape, args=arguments, **settings)
    return tyro.cli(shape, args=arguments, default=default, **settings)


def chosen_recipe(arguments: list[str], recipes: Mapping[str, Callable[[], T]], fallback: str) -> tuple[str, T]:
    """Return the recipe that --recipe names, before the other flags are read: its values are their defaults.

    Raises:
        ConfigError: no recipe of that name; the message lists them.
    """
    name = fallback
    for position, argument in enumerate(arguments):
        if argument == "--recipe" and position + 1 < len(arguments):
            name = arguments[position + 1]
        elif argument.startswith("--recipe="):
            name = argument.partition("=")[2]
    if name not in recipes:
        raise unknown_name("recipe", name, recipes)
    return name, recipes[name]()


def say(text: str, *, as_json: bool = False) -> None:
    """Write a line for people: on standard output, or on standard error where that line is promised to JSON."""
    (sys.stderr if as_json else sys.stdout).write(text + "\n")


def table(rows: Mapping[str, object]) -> str:
    """Return names and values in two aligned columns."""
    width = max((len(name) for name in rows), default=0)
    return "\n".join(f"  {name.ljust(width)}  {_shown(value)}" for name, value in rows.items())


def leaves(values: Mapping[str, Any]) -> str:
    """Return nested values as aligned dotted names."""
    return table(flatten(values))


def _shown(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
