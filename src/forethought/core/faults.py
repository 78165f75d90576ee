"""Named fault points, which do nothing unless a test installs a table that fails or kills at one of them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

FaultTable = Callable[[str], None]

_installed: ContextVar[FaultTable | None] = ContextVar("forethought_faults", default=None)


def fault(point: str) -> None:
    """Announce a point by name; an installed table may raise, sleep or end the process there."""
    table = _installed.get()
    if table is not None:
        table(point)


@contextmanager
def faults(table: FaultTable) -> Generator[None, None, None]:
    """Install a table for the length of a block, in this thread only."""
    token = _installed.set(table)
    try:
        yield
    finally:
        _installed.reset(token)
