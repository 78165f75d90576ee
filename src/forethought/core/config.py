"""Configs as frozen, validated dataclasses that travel as JSON, and the difference between two of them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast, dataclass_transform, get_args, get_type_hints

import pydantic
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass

from forethought.core.errors import ConfigError, nearest

T = TypeVar("T")

_SETTINGS = pydantic.ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose fields are checked against their types when it is built.

    Building one raises ConfigError, which names the field, the value given and the nearest known name.
    """
    made = cast(type[T], validated_dataclass(frozen=True, config=_SETTINGS)(cls))
    checked = made.__init__

    @functools.wraps(checked)
    def init(self: Any, *args: Any, **fields: Any) -> None:
        try:
            checked(self, *args, **fields)
        except ValidationError as error:
            raise ConfigError(f"{made.__name__}: {_explain(made, error)}") from error

    made.__init__ = init
    return made


def to_dict(settings: object) -> dict[str, Any]:
    """Return a config as plain JSON values, nested configs as nested dictionaries."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def from_dict(cls: type[T], values: Mapping[str, Any], *, source: str = "the given values") -> T:
    """Build a config from plain JSON values.

    Raises:
        ConfigError: a field is unknown, missing or out of range; the message names it and the nearest known name.
    """
    if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{source} is a {type(values).__name__}; {cls.__name__} needs an object of named fields")
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{source} does not fit {cls.__name__}: {_explain(cls, error)}") from error


def difference(settings: object, recipe: object) -> dict[str, dict[str, Any]]:
    """Return the leaves in which a config departs from a recipe: dotted name -> {"recipe": ..., "given": ...}."""
    left, right = flatten(to_dict(recipe)), flatten(to_dict(settings))
    names = sorted(left.keys() | right.keys())
    return {
        name: {"recipe": left.get(name), "given": right.get(name)}
        for name in names
        if left.get(name) != right.get(name)
    }


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one with dotted names; lists stay leaves."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(cast(Mapping[str, Any], value), f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON values in canonical form, for run identity and caches."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _explain(cls: type, error: ValidationError) -> str:
    parts: list[str] = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(step) for step in problem["loc"]) or "value"
        unknown = problem["type"] == "unexpected_keyword_argument"
        hint = nearest(str(problem["loc"][-1]), _known(cls, problem["loc"][:-1])) if unknown else ""
        message = problem["msg"].removeprefix("Value error, ")
        is_leaf = isinstance(problem["input"], str | int | float | None)
        given = f" (given {problem['input']!r})" if is_leaf else ""
        parts.append(message if where == "value" else f"{where}: {message}{given}{hint}")
    return "; ".join(parts)


def _known(cls: type, path: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the configs that may stand at a path of field names inside another one."""
    classes: list[Any] = [cls]
    for name in path:
        hints = [get_type_hints(each).get(str(name)) for each in classes if dataclasses.is_dataclass(each)]
        # A step that no field bears chooses among several types (the tag of a union), or is a place in a list.
        classes = [part for hint in hints for part in _parts(hint)] or classes
    return [field.name for each in classes if dataclasses.is_dataclass(each) for field in dataclasses.fields(each)]


def _parts(hint: Any) -> list[Any]:
    """The types that a hint names, at any depth."""
    inner = [part for argument in get_args(hint) for part in _parts(argument)]
    return [hint, *inner] if isinstance(hint, type) else inner
