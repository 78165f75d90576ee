"""Exact resume (R19): a run that is killed and resumed holds the same bits as one that was not."""

from __future__ import annotations

import runpy
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forethought.core.rng import generator

CRASH = Path(__file__).resolve().parent.parent / "crash"


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    server = runpy.run_path(str(CRASH / "client.py"))["Lives"](tmp_path_factory.mktemp("lives") / "log")
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(lives: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted run ends with."""
    outcome = lives.run("fit", directory=str(tmp_path_factory.mktemp("whole") / "run"))
    assert outcome["status"] == 0, lives.log()
    return outcome["result"]


def bits(result: dict[str, Any]) -> dict[str, Any]:
    """Leave out how many points the last life passed."""
    return {name: value for name, value in result.items() if name != "points"}


def live(lives: Any, directory: Path, kills: list[int], **arguments: Any) -> dict[str, Any]:
    """Kill the run at each of these points, one life after the other, then let it reach the end."""
    for kill_at in kills:
        outcome = lives.run("fit", directory=str(directory), kill_at=kill_at, **arguments)
        assert outcome["signal"] == signal.SIGKILL or outcome["status"] == 0, lives.log()
    outcome = lives.run("fit", directory=str(directory), **arguments)
    assert outcome["status"] == 0, lives.log()
    return bits(outcome["result"])


def test_the_reference_run_exercises_what_is_compared(whole: dict[str, Any]) -> None:
    assert whole["records"] == 18
    assert whole["state"]["step"] == 12, "the run should stop early, at step 12 of 14"
    assert whole["state"]["best_step"] == 6
    assert whole["steps"] == [6, 8, 12]
    assert set(whole["checkpoint"]) == {"model.safetensors", "optimizer.safetensors", "ema.safetensors"}


def test_a_second_uninterrupted_run_holds_the_same_bits(lives: Any, whole: dict[str, Any], tmp_path: Path) -> None:
    assert live(lives, tmp_path / "run", []) == bits(whole)


@pytest.mark.parametrize("plans", [10, pytest.param(200, marks=pytest.mark.nightly)])
def test_killed_and_resumed_runs_hold_the_same_bits(
    lives: Any, whole: dict[str, Any], tmp_path: Path, plans: int
) -> None:
    points = whole["points"]
    differing: dict[str, Any] = {}
    for plan in range(plans):
        chooser = generator(19, "test.kill_plans", plan)
        kills = [int(chooser.integers(1, points)) for _ in range(int(chooser.integers(1, 4)))]
        directory = tmp_path / f"run{plan}"
        result = live(lives, directory, kills)
        if result != bits(whole):
            differing[str(kills)] = result
        shutil.rmtree(directory)
    assert differing == {}


@pytest.mark.parametrize(
    "mutant",
    [
        "noise from a generator nobody saves",
        "loader replays",
        "metrics not rewound",
        "optimiser not restored",
        "average not restored",
        "patience forgotten",
        "best forgotten",
    ],
)
def test_the_comparison_notices_a_resume_that_is_not_exact(
    lives: Any, whole: dict[str, Any], tmp_path: Path, mutant: str
) -> None:
    kills = [int(whole["points"] * 0.85)]
    assert live(lives, tmp_path / "run", kills) == bits(whole)
    assert live(lives, tmp_path / "planted", kills, mutant=mutant) != bits(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_saves_the_run_and_resuming_gives_the_same_bits(
    lives: Any, whole: dict[str, Any], tmp_path: Path, number: int
) -> None:
    stopped = lives.run("fit", directory=str(tmp_path / "run"), signals=[[4, number]])["result"]
    assert stopped["error"] == "InterruptedRunError"
    assert "after step 5 of 14" in stopped["message"]
    assert "--exists resume" in stopped["message"]
    assert stopped["saved"][-1] == 5
    assert live(lives, tmp_path / "run", []) == bits(whole) | {"steps": [6, 8, 12]}


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_request_stops_at_once_without_saving_and_still_resumes(
    lives: Any, whole: dict[str, Any], tmp_path: Path, second: int
) -> None:
    signals = [[4, signal.SIGINT], [4, second]]
    stopped = lives.run("fit", directory=str(tmp_path / "run"), signals=signals)["result"]
    assert stopped["error"] == "KeyboardInterrupt"
    assert stopped["saved"] == [2, 4]
    assert live(lives, tmp_path / "run", []) == bits(whole)


def test_a_request_in_the_last_step_lets_the_run_finish(lives: Any, whole: dict[str, Any], tmp_path: Path) -> None:
    outcome = lives.run("fit", directory=str(tmp_path / "run"), signals=[[11, signal.SIGTERM]])["result"]
    assert outcome["error"] == "InterruptedRunError"
    assert live(lives, tmp_path / "run", []) == bits(whole)
