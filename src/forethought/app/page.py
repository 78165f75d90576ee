"""The parts of a report page, and their one rendering into a self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number worth seeing first, with its interval or unit as a note."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    is_number: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Sample:
    """A text that a model wrote, behind its prompt."""

    caption: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Link:
    """A page beside this one, in the same folder or below."""

    place: str
    text: str


@dataclass(frozen=True)
class Section:
    """A picture or a table, and the one sentence that says what it shows.

    A section with a chapter begins it: its name stands above, and in the list of contents.
    """

    title: str
    sentence: str
    drawing: str = ""
    table: Table | None = None
    samples: Sequence[Sample] = ()
    chapter: str = ""
    more: Link | None = None


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    lead: str
    command: str
    environment: str
    figures: Sequence[Figure] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def render(page: Page) -> str:
    """Return the page as one HTML file that asks for nothing outside itself; all text is escaped."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = resources.files("forethought.app").joinpath("templates", "report.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(page=page)


def table_of(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a table of plain values, numbers set right."""
    return Table(columns, [[_cell(value) for value in row] for row in rows])


def environment_line(environment: Mapping[str, Any]) -> str:
    """Return in one line what a run ran on."""
    hardware = environment.get("hardware", {})
    packages = environment.get("packages", {})
    git = environment.get("git", {})
    revision = (git.get("revision") or "no checkout")[:12] + (" with local changes" if git.get("dirty") else "")
    devices = ", ".join(hardware.get("accelerators") or [])
    return (
        f"{hardware.get('processor')}, {hardware.get('cores')} cores, "
        f"{(hardware.get('memory_bytes') or 0) / 2**30:.0f} GiB{', ' + devices if devices else ''}; "
        f"Python {environment.get('python')}, torch {packages.get('torch')}, "
        f"{(environment.get('threads') or {}).get('torch')} threads; code at {revision}."
    )


def _cell(value: object) -> Cell:
    if value is None:
        return Cell("-")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int):
        return Cell(f"{value:,}", is_number=True)
    if isinstance(value, float):
        return Cell(f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}", is_number=True)
    return Cell(str(value))
