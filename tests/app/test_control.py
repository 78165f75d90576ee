"""The verbs of control, on an environment that needs no simulator."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from forethought.app.cli import BAD_INPUT, DONE, FAILED, main
from forethought.app.control.pictures import monitor_chart
from forethought.app.control.places import environment
from forethought.app.control.results import RunRecord, check_drawing
from forethought.app.control.run import RunArguments
from forethought.app.report import write_report
from forethought.core.errors import ConfigError
from tests.app.browser import BROWSER, laid_out


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As tasks run: sums over more threads may round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


RUN = ("--env", "Pendulum-v1", "--episodes", "3", "--seeds", "0,1", "--samples", "4", "--execute", "8")


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_rollouts_spread_over_processes_give_the_same_figures(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, backend: str
):
    agent = str(place / "agent")
    whole = _json(capsys, "control", "run", agent, *RUN, "--robots", "2")
    spread = ("--workers", "2", "--backend", backend, "--out", str(tmp_path / "r"), "--robots", "2")
    monkeypatch.chdir(place)
    parts = _json(capsys, "control", "run", "agent", *RUN, *spread)
    for name in ("per_episode", "return_mean", "return_interval", "return_by_seed", "num_plans", "faults", "versions"):
        assert parts[name] == whole[name], name
    # The same call again finds every seed done and runs nothing.
    before = (tmp_path / "r" / "seeds" / "seed-1" / "result.json").stat().st_mtime_ns
    again = _json(capsys, "control", "run", "agent", *RUN, *spread, "--exists", "resume")
    assert again["per_episode"] == whole["per_episode"]
    assert (tmp_path / "r" / "seeds" / "seed-1" / "result.json").stat().st_mtime_ns == before


def _members(place: Path, out: Path, capsys: pytest.CaptureFixture[str], backend: str) -> list[dict[str, str]]:
    flags = ("--env", "Pendulum-v1", "--out", str(out), "--recipe", "tiny", "--steps", "40", "--seeds", "0,1")
    result = _json(capsys, "control", "train", str(place / "data"), *flags, "--backend", backend)
    assert [Path(member).name for member in result["members"]] == ["seed-0", "seed-1"]
    assert len(result["rollout_error"]["mean"]) == 8
    return result["fingerprints"]


def test_members_trained_in_processes_are_those_trained_here(place: Path, tmp_path: Path, capsys):
    members = _members(place, tmp_path / "members", capsys, "local")
    alone = json.loads((place / "agent" / "result.json").read_text())["parts"]
    assert members[0] == {name: alone[name]["fingerprint"] for name in members[0]}
    assert all(members[1][name] != members[0][name] for name in members[0])


@pytest.mark.nightly
def test_members_trained_under_ray_are_those_of_local_processes(place: Path, tmp_path: Path, capsys):
    local, ray = (_members(place, tmp_path / backend, capsys, backend) for backend in ("local", "ray"))
    assert local == ray


def test_a_task_that_fails_is_named_and_what_is_done_is_kept(place: Path, tmp_path: Path, capsys):
    arguments = ("--env", "MountainCarContinuous-v0", "--workers", "1", "--out", str(tmp_path / "r"))
    assert main(["control", "run", str(place / "agent"), *arguments]) == FAILED
    said = capsys.readouterr().err
    assert "seed-0" in said
    assert "was trained for" in said
    assert main(["control", "run", str(place / "agent"), *RUN, "--workers", "2"]) == BAD_INPUT
    assert "need --out" in capsys.readouterr().err


def test_a_run_records_and_hands_on_every_argument_that_changes_its_figures():
    how = {"out", "exists", "workers", "backend", "json"}
    assert set(RunArguments.__dataclass_fields__) - how == set(RunRecord.__dataclass_fields__)


def test_a_film_is_written_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    try:
        check_drawing(environment("Hopper-v5", render=True), "Hopper-v5")
    except ConfigError as error:
        pytest.skip(f"nothing to draw with here: {error}")
    imageio = pytest.importorskip("imageio.v3")
    out = tmp_path / "films"
    flags = ("--episodes", "2", "--film", "1", "--out", str(out))
    result = _json(capsys, "control", "run", "random", "--env", "Hopper-v5", *flags)
    frames = imageio.imread(out / result["films"][0])
    assert len(frames) == 1 + result["per_episode"][0]["steps"] // 2
    assert max(frames.shape[1:3]) <= 320
    # A picture and no empty window, and one that moves.
    assert frames[0].std() > 20
    assert (frames[0] != frames[-1]).any()
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64") == min(10, len(frames))
    assert f"{result['score']:.1f}" in page
    assert f"Hopper-v5, gymnasium {result['versions']['gymnasium']}" in page
    assert result["score_interval"][0] < result["score"] < result["score_interval"][1]


def test_what_cannot_be_drawn_is_said_before_anything_runs(place: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    arguments = ("--env", "Pendulum-v1", "--film", "1", "--out", str(tmp_path / "r"))
    assert main(["control", "run", str(place / "agent"), *arguments]) == BAD_INPUT
    assert "cannot be drawn" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def pages(place: Path) -> dict[str, Path]:
    agent, nominal = str(place / "agent"), str(place / "nominal")
    collect = ("--env", "Pendulum-v1", "--policy", agent, "--episodes", "3")
    assert main(["control", "collect", nominal, *collect]) == DONE
    watch = ("--monitor", nominal, "--out", str(place / "watched"))
    assert main(["control", "run", agent, *RUN, *watch]) == DONE
    flags = ("--play", nominal, "--original", str(place / "data"), "--out", str(place / "adapted"), "--steps", "20")
    assert main(["control", "adapt", agent, *flags]) == DONE
    return {name: write_report(place / name) for name in ("agent", "watched", "adapted")}


def test_pages_show_the_figures_of_their_runs(pages: dict[str, Path]):
    result = json.loads((pages["watched"].parent / "result.json").read_text())
    page = pages["watched"].read_text()
    assert f"{result['return_mean']:,.1f}" in page
    assert f"{result['return_interval'][0]:,.1f} to {result['return_interval'][1]:,.1f}" in page
    assert page.count("<svg") == 2
    assert len(result["monitor"]["z"]) == 200
    assert result["monitor"]["begins"] == [0]
    trained, adapted = pages["agent"].read_text(), pages["adapted"].read_text()
    assert "one-step dynamics, rolled out" in trained
    assert "no change" in trained
    told = json.loads((pages["adapted"].parent / "adaptation.json").read_text())
    assert f"{told['new_after']['model'][0]:.4f}" in adapted
    assert adapted.index("On the changed body") < adapted.index("On the old body")
    alarm = monitor_chart({"z": [0.0, None, 12.0, 3.0], "begins": [0], "alarm_at": 2})
    assert "alarm at step 2" in alarm
    assert "wish to adapt" in alarm


@pytest.mark.skipif(BROWSER is None, reason="needs the browser of Debian's package chromium")
@pytest.mark.parametrize("name", ["agent", "watched", "adapted"])
def test_pages_fit_a_real_window(pages: dict[str, Path], tmp_path: Path, name: str):
    seen = laid_out(pages[name], tmp_path, width=390)
    assert seen["scroll"] <= seen["inner"] == 390
    assert seen["resources"] == 0
    assert len(seen["drawings"]) == pages[name].read_text().count("<svg") >= 1
    for width, height in seen["drawings"]:
        assert 250 < width <= 390
        assert height > 60
    # Labels that a legend or an axis needs were laid out inside their drawing.
    assert seen["outside"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "AGENT", "--env", "Pendulumm-v1"], "Pendulum"),
        (["run", "AGENT", "--env", "MountainCarContinuous-v0"], "was trained for"),
        (["run", "AGENT", "--env", "Pendulum-v1", "--seeds", "a"], "whole numbers"),
        (["run", "AGENT", "--env", "Pendulum-v1", "--changes", "actuator:1"], "takes 3"),
        (["run", "AGENT", "--env", "Pendulum-v1", "--changes", "wings:1"], "change of a body"),
        (["run", "AGENT", "--env", "Pendulum-v1", "--changes", "mass:2"], "MuJoCo"),
        (["run", "random", "--env", "Pendulum-v1", "--monitor", "DATA"], "give an agent"),
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
