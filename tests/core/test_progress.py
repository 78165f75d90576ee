"""Progress goes to standard error, as a bar on a terminal and as a line every ten seconds elsewhere."""

from __future__ import annotations

import io
import sys
from unittest import mock

import pytest

from forethought.core import progress as progress_module
from forethought.core.progress import open_progress, track


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress_module, "time", made)
    return made


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_comes_every_ten_seconds_and_at_the_end(clock: Clock) -> None:
    stream = io.StringIO()
    bar = open_progress("fit", 100, stream=stream)
    for step in range(1, 26):
        clock.now += 1.0
        bar.update(step, loss=3.25, tokens_per_second=12345.6)
    assert stream.getvalue().splitlines() == [
        "fit: 10/100 steps, loss 3.25, tokens per second 12,346, 1:30 left",
        "fit: 20/100 steps, loss 3.25, tokens per second 12,346, 1:20 left",
    ]
    bar.close()
    bar.close()
    assert stream.getvalue().splitlines()[2:] == ["fit: 25/100 steps, loss 3.25, tokens per second 12,346, 1:15 left"]


def test_a_resumed_run_judges_the_time_left_by_its_own_pace(clock: Clock) -> None:
    stream = io.StringIO()
    bar = open_progress("fit", 1000, stream=stream)
    bar.update(900)
    clock.now += 10.0
    bar.update(910)
    assert stream.getvalue() == "fit: 910/1,000 steps, 1:30 left\n"


def test_lines_without_a_total_and_with_hours(clock: Clock) -> None:
    stream = io.StringIO()
    bar = open_progress("read", None, unit="bytes", stream=stream)
    clock.now += 11.0
    bar.update(5.0, source="a.txt", missing=None, share=0.123456)
    assert stream.getvalue() == "read: 5 bytes, source a.txt, share 0.1235\n"
    slow = open_progress("fit", 10_000, stream=stream)
    slow.update(0)
    clock.now += 10.0
    slow.update(1)
    assert "27:46:30 left" in stream.getvalue()


def test_nothing_goes_to_standard_output_and_an_error_still_shows_where_it_stood(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> None:
        with track("fit", 3) as bar:
            bar.update(1, loss=float("nan"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "fit: 1/3 steps, loss nan\n"


def test_a_terminal_gets_a_bar_and_standard_output_stays_the_callers(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Terminal()
    before = sys.stdout
    with (
        mock.patch.dict("os.environ", {"TERM": "xterm", "COLUMNS": "100"}),
        mock.patch.object(sys, "stderr", stream),
        track("fit", 3, unit="steps") as bar,
    ):
        bar.update(2, loss=1.5)
        assert sys.stdout is before
        sys.stdout.write("a result\n")
    assert "fit" in stream.getvalue()
    assert "loss 1.5" in stream.getvalue()
    assert capsys.readouterr().out == "a result\n"
