"""The verbs of the world room from the command line, on a world small enough for seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forethought.app.cli import main
from forethought.app.report import write_report
from forethought.app.world.pictures import film_strip, paths_over, trace_under_film
from forethought.data import open_episodes
from forethought.world import load_world_model


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    collect = ["world", "collect", str(folder / "data"), "--episodes", "30", "--steps", "60", "--image-size", "32"]
    assert main([*collect, "--preview", str(folder / "preview.gif")]) == 0
    train = ["world", "train", str(folder / "data"), "--out", str(folder / "run"), "--recipe", "tiny", "--steps", "50"]
    assert main([*train, "--held-out", "0.4", "--regulariser.num-projections", "64"]) == 0
    return folder


def test_collected_episodes_and_their_preview(place: Path) -> None:
    episodes = open_episodes(place / "data")
    assert (episodes.num_episodes, episodes.num_steps) == (30, 1800)
    assert (place / "preview.gif").read_bytes().startswith(b"GIF8")


def test_a_trained_model_is_measured_by_every_verb(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = str(place / "run"), str(place / "data")
    rates = call(
        capsys, "world", "evaluate", run, data, "--pairs", "4", "--seeds", "2", "--policies", "plan", "inverse"
    )
    assert set(rates["policies"]) == {"plan", "inverse", "no-op", "random"}
    assert rates["pairs"] == 8
    assert rates["policies"]["no-op"]["success"] == 0
    found = call(capsys, "world", "probe", run, data)
    assert set(found["quantities"]) == {"state", "x", "y"}
    surprise = call(
        capsys, "world", "surprise", run, data, "--pairs", "4", "--perturb", "teleport", "freeze", "--out",
        str(place / "monitor"),
    )  # fmt: skip
    assert set(surprise["perturbations"]) == {"teleport", "freeze"}
    assert surprise["psychometric"]["auroc"][0] == 0.5
    assert (place / "monitor" / "surprise.json").exists()


def test_goals_come_from_episodes_that_training_never_saw(place: Path) -> None:
    from forethought.app.world.measuring import open_model_and_data

    model, parts = open_model_and_data(place / "run", place / "data")
    assert (parts["train"].num_episodes, parts["held_out"].num_episodes) == (18, 12)
    assert model.facts["episodes"] == open_episodes(place / "data").identity()
    seen = {part["observations"][0].tobytes() for i in range(18) for part in [parts["train"].episode(i)]}
    held = {part["observations"][0].tobytes() for i in range(12) for part in [parts["held_out"].episode(i)]}
    assert not seen & held


def test_the_report_of_a_training_run(place: Path) -> None:
    text = write_report(place / "run").read_text()
    assert "It stays alive" in text
    assert "effective rank" in text
    assert load_world_model(place / "run").facts["steps"] == 50


def test_bad_input_is_one_clear_error(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = str(place / "run"), str(place / "data")
    cases = {
        ("collect", data): "already exists; say --replace",
        ("collect", str(tmp_path / "x"), "--environment", "reacher", "--behaviour", "weak"): "policy of reacher",
        ("train", str(tmp_path / "none"), "--out", str(tmp_path / "y")): "does not exist",
        ("evaluate", run, data, "--policies", "plann"): "Did you mean 'plan'",
        ("evaluate", data, data): "is a episodes; give a world model",
        ("surprise", run, data, "--perturb", "telport"): "Did you mean 'teleport'",
        ("evaluate", run, data, "--protocol", "far"): "no episode has a goal 100 steps",
    }
    for arguments, words in cases.items():
        assert main(["world", *arguments]) == 2, arguments
        assert words in capsys.readouterr().err, arguments


def test_a_collapse_ends_the_command_with_the_reason(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["world", "train", str(place / "data"), "--out", str(tmp_path / "run"), "--recipe", "tiny"]
    assert main([*arguments, "--regulariser.strength", "0", "--steps", "200"]) == 1
    assert "the representation collapsed: the latents hardly vary" in capsys.readouterr().err
    assert "The latents collapsed" in write_report(tmp_path / "run").read_text()


def test_pictures_are_whole_and_escaped() -> None:
    import numpy as np

    frames = np.zeros((6, 8, 8, 3), np.uint8)
    drawings = [
        film_strip({"a<b": frames}, description='say "x"'),
        trace_under_film(frames, {"z": [0.0, 1.0, float("nan"), 5.0, 2.0, 1.0]}, event=3, threshold=3, description="d"),
        paths_over(frames[0], {"p": np.ones((3, 2))}, span=2.0, description="d"),
    ]
    for drawing in drawings:
        assert drawing.startswith("<svg")
        assert drawing.endswith("</svg>")
        assert "nan" not in drawing
    assert "a&lt;b" in drawings[0]
    assert drawings[0].count("data:image/png;base64,") == 6


@pytest.mark.nightly
def test_the_quick_demo_runs_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "demo")
    result = call(capsys, "world", "demo", "--quick", "--out", out)
    assert {"fit", "near", "far", "probe", "surprise", "pictures"} <= set(result)
    text = Path(result["report"]).read_text()
    assert "It knows when it is surprised" in text
    again = call(capsys, "world", "demo", "--quick", "--out", out)
    assert again["near"] == result["near"]
