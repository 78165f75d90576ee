"""The verbs of control, on an environment that needs no simulator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forethought.app.cli import BAD_INPUT, DONE, main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    common = ["--env", "Pendulum-v1"]
    assert main(["control", "collect", str(folder / "data"), *common, "--episodes", "6"]) == DONE
    train = ["control", "train", str(folder / "data"), *common, "--out", str(folder / "agent"), "--recipe", "tiny"]
    assert main([*train, "--steps", "40", "--baselines"]) == DONE
    return folder


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == DONE
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_run_reports_seeds_and_episodes(place: Path, capsys: pytest.CaptureFixture[str]):
    common = ("control", "run", str(place / "agent"), "--env", "Pendulum-v1", "--episodes", "2", "--seeds", "0,1")
    flags = ("--samples", "4", "--execute", "8", "--out", str(place / "result"))
    result = _json(capsys, *common, *flags)
    assert result["episodes"] == 4
    assert sorted(result["return_by_seed"]) == ["0", "1"]
    assert result["faults"] == 0
    assert result["num_plans"] == 2 * 200 // 8
    assert len((place / "result" / "episodes.csv").read_text().splitlines()) == 5


def test_adapt_and_run_with_the_new_dynamics(place: Path, capsys: pytest.CaptureFixture[str]):
    agent, play = str(place / "agent"), str(place / "play")
    collected = ("control", "collect", play, "--env", "Pendulum-v1", "--policy", agent, "--episodes", "4")
    assert _json(capsys, *collected, "--changes", "gain:-1", "--noise", "0.2")["steps"] == 800
    flags = ("--play", play, "--original", str(place / "data"), "--out", str(place / "new"), "--steps", "40")
    report = _json(capsys, "control", "adapt", agent, *flags)
    assert report["parent"] != report["fingerprint"]
    assert report["new_after"]["model"][0] < report["new_before"]["model"][0]
    assert len(report["old_after"]["model"]) == 8
    run = ("control", "run", agent, "--env", "Pendulum-v1", "--episodes", "1", "--execute", "8")
    assert _json(capsys, *run, "--dynamics", str(place / "new"))["faults"] == 0


def test_distil_and_run_the_policy(place: Path, capsys: pytest.CaptureFixture[str]):
    flags = ("--data", str(place / "data"), "--out", str(place / "fast"), "--states", "300", "--steps", "20")
    assert _json(capsys, "control", "distil", str(place / "agent"), *flags)["states"] >= 300
    run = _json(capsys, "control", "run", str(place / "fast"), "--env", "Pendulum-v1", "--episodes", "1")
    assert run["num_plans"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "AGENT", "--env", "Pendulumm-v1"], "Pendulum"),
        (["run", "AGENT", "--env", "MountainCarContinuous-v0"], "was trained for"),
        (["run", "AGENT", "--env", "Pendulum-v1", "--seeds", "a"], "whole numbers"),
        (["run", "AGENT", "--env", "Pendulum-v1", "--changes", "actuator:1"], "takes 3"),
        (["run", "AGENT", "--env", "Pendulum-v1", "--changes", "wings:1"], "change of a body"),
        (["run", "AGENT", "--env", "Pendulum-v1", "--changes", "mass:2"], "MuJoCo"),
        (["train", "DATA", "--env", "MountainCarContinuous-v0", "--out", "x"], "observations"),
        (["train", "nowhere.npz", "--out", "x"], "nowhere"),
        (["adapt", "DATA", "--play", "DATA", "--out", "x"], "not a model of control"),
    ],
)
def test_bad_input_is_one_line(place: Path, arguments, said: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.chdir(place)
    capsys.readouterr()
    given = [{"AGENT": "agent", "DATA": "data"}.get(argument, argument) for argument in arguments]
    assert main(["control", *given]) == BAD_INPUT
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
