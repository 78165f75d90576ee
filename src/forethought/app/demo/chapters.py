"""How sections become chapters of the tour, each with a way to the room's own page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from forethought.app.page import Link, Section


def chapter(sections: Sequence[Section], name: str) -> list[Section]:
    """Return sections of which the first begins a chapter."""
    return [replace(section, chapter=name if number == 0 else "") for number, section in enumerate(sections)]


def linked(section: Section, place: str, text: str) -> Section:
    """Return a section that leads on to another page of the same directory."""
    return replace(section, more=Link(place, text))
