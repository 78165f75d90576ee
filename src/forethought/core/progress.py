"""Progress on standard error: a live bar where a terminal is attached, else one log line every ten seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol, TextIO, cast

LOG_EVERY_SECONDS = 10.0


class Progress(Protocol):
    """What long work reports to: where it stands, and facts worth seeing beside it."""

    def update(self, done: float, **facts: object) -> None:
        """Say how much is done, in the unit of the total, with facts such as loss=3.21."""
        ...

    def close(self) -> None:
        """End the display."""
        ...


def open_progress(title: str, total: float | None, *, unit: str = "steps", stream: TextIO | None = None) -> Progress:
    """Return a live bar for a terminal or a line logger for anything else, writing to standard error by default."""
    chosen = cast(TextIO, sys.stderr) if stream is None else stream
    return (_Bar if chosen.isatty() else _Lines)(title, total, unit, chosen)


class track:
    """Open a progress display for a block: `with track("fit", 100) as progress: progress.update(1)`."""

    def __init__(self, title: str, total: float | None, *, unit: str = "steps") -> None:
        self._progress = open_progress(title, total, unit=unit)

    def __enter__(self) -> Progress:
        return self._progress

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()


class _Lines:
    def __init__(self, title: str, total: float | None, unit: str, stream: TextIO) -> None:
        self._title, self._total, self._unit, self._stream = title, total, unit, stream
        self._started = time.monotonic()
        self._spoke = self._started
        self._first: float | None = None
        self._pending: str | None = None

    def update(self, done: float, **facts: object) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = done, now
        self._pending = self._line(done, now, facts)
        if now - self._spoke >= LOG_EVERY_SECONDS:
            self._spoke = now
            self._speak()

    def close(self) -> None:
        self._speak()

    def _speak(self) -> None:
        if self._pending is not None:
            self._stream.write(self._pending + "\n")
            self._stream.flush()
            self._pending = None

    def _line(self, done: float, now: float, facts: dict[str, object]) -> str:
        of = f"/{_short(self._total)}" if self._total else ""
        left = ""
        moved = done - (self._first or 0.0)
        if self._total and moved > 0 and done < self._total:
            left = f", {_clock((self._total - done) * (now - self._started) / moved)} left"
        return f"{self._title}: {_short(done)}{of} {self._unit}{_facts(facts)}{left}"


class _Bar:
    def __init__(self, title: str, total: float | None, unit: str, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)]
        columns += [TextColumn("{task.fields[facts]}"), TimeElapsedColumn(), TimeRemainingColumn()]
        # Standard output belongs to the caller, for a result in JSON or a stream of text; rich would catch it too.
        console = Console(file=stream)
        self._bar = RichProgress(*columns, console=console, refresh_per_second=4, redirect_stdout=False)
        self._bar.start()
        self._task = self._bar.add_task(title, total=total, facts="")

    def update(self, done: float, **facts: object) -> None:
        self._bar.update(self._task, completed=done, facts=_facts(facts).lstrip(", "))

    def close(self) -> None:
        self._bar.stop()


def _facts(facts: dict[str, object]) -> str:
    return "".join(f", {name.replace('_', ' ')} {_short(value)}" for name, value in facts.items() if value is not None)


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 or value.is_integer() else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
