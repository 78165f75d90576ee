"""What a phenomenon returns: plain figures, tables and panels, from which any front end can draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from forethought.stats import mean_interval

FEW_SEEDS = 3
"""From so many seeds on, a claim has to hold by its 95 % interval and not by its mean alone."""

Budget = Literal["smoke", "full"]
"""How much to spend: all smoke forms together in a minute and a half, all full forms in a quarter of an hour."""


@dataclass(frozen=True)
class Panel:
    """One picture of named (x, y) lines; a logarithmic axis drops points that are not positive."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    log_x: bool = False
    log_y: bool = False
    levels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """One table: a title, the columns, and rows of plain values."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Outcome:
    """What was seen: `holds` says for each expected shape whether it showed in this run, with nothing forced."""

    name: str
    title: str
    sentence: str
    budget: Budget
    seed: int
    panels: Sequence[Panel]
    tables: Sequence[Rows]
    holds: Mapping[str, bool]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; numbers that are not finite become None."""
        return _plain(dataclasses.asdict(self))


def judged(margins: Mapping[str, Sequence[float]]) -> tuple[Rows, dict[str, bool]]:
    """Return the table of claims and whether each holds; a claim is a margin a seed, above 0 where the seed shows it.

    With three seeds or more the lower end of the margin's 95 % interval (Student's t, paired by seed) must be above 0.
    """
    rows: list[list[Any]] = []
    holds: dict[str, bool] = {}
    for name, values in margins.items():
        found = mean_interval(list(values))
        holds[name] = (found.low if len(values) >= FEW_SEEDS else found.estimate) > 0.0
        rows.append([name, found.estimate, *_ends(found.low, found.high), len(values)])
    return Rows("margins of the claims, paired by seed", ["claim", "mean", "low", "high", "seeds"], rows), holds


def ends_of(
    title: str, keys: Sequence[str], columns: Sequence[str], cells: Mapping[Any, Sequence[Sequence[float]]]
) -> Rows:
    """Return the table of 95 % intervals of means over seeds, two columns a figure, for cells key -> [seed][figure]."""
    rows: list[list[Any]] = []
    for key, found in cells.items():
        ends: list[Any] = []
        for values in zip(*found, strict=True):
            interval = mean_interval(list(values))
            ends += _ends(interval.low, interval.high)
        rows.append([*(key if isinstance(key, tuple) else (key,)), *ends])
    return Rows(title, [*keys, *(f"{name}, {end}" for name in columns for end in ("low", "high"))], rows)


def _ends(low: float, high: float) -> list[float | None]:
    return [low, high] if high - low < float("inf") else [None, None]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    number = float(value)
    return number if number - number == 0.0 else None
