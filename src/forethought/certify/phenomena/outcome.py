"""What a phenomenon returns: plain figures, tables and panels, from which any front end can draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    number = float(value)
    return number if number - number == 0.0 else None
