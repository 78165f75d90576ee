"""Configs, errors and optional imports: what they accept and how they say no."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from forethought.core import errors, extras
from forethought.core.config import config, difference, digest, flatten, from_dict, to_dict
from forethought.core.errors import ConfigError, ForethoughtError, InputError, MissingExtraError, StorageError


@config
class Inner:
    rate: float = Field(default=0.1, gt=0.0)
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.rate > 100:
            raise ConfigError("rate is above 100; give less")


@config
class Outer:
    """An outer config."""

    width: int = 3
    inner: Inner = Inner()
    names: tuple[str, ...] = ("x",)
    limit: float | None = None


def test_a_config_is_frozen_and_equal_by_value() -> None:
    given_ = Outer(width=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        given_.width = 5  # type: ignore[misc]
    assert given_ == Outer(width=4) != Outer()
    assert dataclasses.replace(given_, width=6).width == 6
    assert Outer.__doc__ == "An outer config."


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"widht": 4}, r"Outer: widht: .*\(given 4\) Did you mean 'width'\?"),
        ({"width": "many"}, r"width: .*integer.*\(given 'many'\)"),
        ({"width": 1.5}, r"width: .*\(given 1\.5\)"),
        ({"limit": float("nan")}, r"limit.*finite.*\(given nan\)"),
        ({"inner": 3}, r"inner: .*\(given 3\)"),
        ({"inner": {"raet": 3}}, r"inner\.raet: .*Did you mean 'rate'\?"),
        ({"inner": {"rate": -1}}, r"inner\.rate: .*greater than 0.*\(given -1\)"),
        ({"inner": {"kind": "c"}}, r"inner\.kind: .*'a' or 'b'.*\(given 'c'\)"),
        ({"inner": {"rate": 1000}}, "rate is above 100; give less"),
        ({"names": 4}, r"names"),
    ],
)
def test_a_wrong_setting_is_named_with_the_value_and_the_nearest_name(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Outer(**values)
    with pytest.raises(ConfigError, match=r"recipe\.json does not fit Outer"):
        from_dict(Outer, values, source="recipe.json")


@config
class Circle:
    shape: Literal["circle"] = "circle"
    radius: float = 1.0


@config
class Square:
    shape: Literal["square"] = "square"
    width: float = 1.0
    holes: tuple[Circle, ...] = ()


@config
class Figure:
    form: Annotated[Circle | Square, Field(discriminator="shape")] = Circle()
    other: Circle | None = None


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"form": {"shape": "square", "widht": 3}}, r"form\.square\.widht: .*Did you mean 'width'\?"),
        ({"form": {"shape": "circle", "radus": 3}}, r"form\.circle\.radus: .*Did you mean 'radius'\?"),
        ({"form": {"shape": "square", "holes": [{"raduis": 1}]}}, r"holes\.0\.raduis: .*Did you mean 'radius'\?"),
        ({"form": {"shape": "oval"}}, r"form: .*'circle'.*'square'"),
        ({"other": {"raduis": 1}}, r"other\.raduis: .*Did you mean 'radius'\?"),
    ],
)
def test_a_wrong_setting_of_one_of_several_kinds_is_named_too(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        from_dict(Figure, values)


def test_what_is_no_object_is_no_config() -> None:
    for values in ([], "text", 5, None):
        with pytest.raises(ConfigError, match="needs an object of named fields"):
            from_dict(Outer, values)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(-1000, 1000),
    st.floats(1e-6, 99),
    st.lists(st.text(max_size=5), max_size=3),
    st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_a_config_travels_through_json(width: int, rate: float, names: list[str], limit: float | None) -> None:
    given_ = Outer(width=width, inner=Inner(rate=rate, kind="b"), names=tuple(names), limit=limit)
    assert from_dict(Outer, json.loads(json.dumps(to_dict(given_)))) == given_


def test_the_difference_names_the_leaves_that_depart() -> None:
    assert difference(Outer(), Outer()) == {}
    assert difference(Outer(inner=Inner(rate=0.5), names=("y", "z")), Outer()) == {
        "inner.rate": {"recipe": 0.1, "given": 0.5},
        "names": {"recipe": ["x"], "given": ["y", "z"]},
    }


def test_flatten_gives_dotted_leaves_and_digest_does_not_depend_on_order() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, {"e": 2}]}) == {"a.b.c": 1, "d": [1, {"e": 2}]}
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def all_errors() -> list[type]:
    members = inspect.getmembers(errors, inspect.isclass)
    return [cls for name, cls in members if issubclass(cls, BaseException) and cls.__module__ == errors.__name__]


def test_every_error_is_of_the_one_tree_says_what_it_was_given_and_has_a_docstring() -> None:
    assert len(all_errors()) >= 10
    for cls in all_errors():
        assert issubclass(cls, ForethoughtError)
        assert str(cls("what to do")) == "what to do"
        assert cls.__doc__


def test_errors_are_also_what_python_programs_would_catch() -> None:
    builtin = {
        "InputError": ValueError,
        "RunExistsError": FileExistsError,
        "MissingExtraError": ImportError,
        "StorageError": OSError,
        "TrainingError": ArithmeticError,
    }
    for name, base in builtin.items():
        assert issubclass(getattr(errors, name), base)
    for name in ("ConfigError", "DataError", "ArtefactError", "RunExistsError"):
        assert issubclass(getattr(errors, name), InputError)
    assert not issubclass(StorageError, InputError)


def test_unknown_names_come_with_the_known_and_the_nearest() -> None:
    message = str(errors.unknown_name("schedule", "cosin", ["trapezoid", "cosine"]))
    assert message == "unknown schedule 'cosin'; known: cosine, trapezoid. Did you mean 'cosine'?"
    assert str(errors.unknown_name("schedule", "zzz", ["cosine"])) == "unknown schedule 'zzz'; known: cosine."


def test_a_missing_package_names_the_extra_to_install() -> None:
    with pytest.raises(MissingExtraError, match=r"reading Parquet needs the package 'no_such'.*forethought\[data\]"):
        extras.require("no_such.module", extra="data", purpose="reading Parquet")
    assert extras.require("json", extra="data", purpose="reading") is json


def test_a_package_that_is_there_but_broken_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_broken.py").write_text("import no_such_part\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"cannot be imported here .*no_such_part"):
        extras.require("half_broken", extra="data", purpose="reading Parquet")
