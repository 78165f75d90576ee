"""Training as a run: it learns, resumes to the same bits, recalibrates, and stops when the latents collapse."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from forethought.core.checkpoint import CheckpointStore
from forethought.core.errors import ConfigError, DataError, InterruptedRunError, TrainingError
from forethought.core.run import open_run
from forethought.data import Episodes
from forethought.world import WorldModel, fit_world, load_world_model, preset, split_episodes
from forethought.world.config import AlarmConfig, RegulariserConfig
from forethought.world.data import Windows, action_statistics
from forethought.world.layers import recalibrate
from forethought.world.monitors import collapse_reason, effective_rank, straightness
from tests.world.conftest import settings


def test_it_learns_and_the_latents_live(trained_run: Path) -> None:
    run = open_run(trained_run)
    result = run["result"]
    assert result["collapsed"] is None
    assert result["copy_ratio"] < 0.7
    assert 0.5 < result["spread"] < 1.3
    assert result["effective_rank"] > 4
    evaluations = [record for record in run["metrics"] if record["event"] == "evaluation"]
    assert [record["step"] for record in evaluations] == [50, 100, 150, 200, 250]
    assert all(0.7 < record["eval_over_train"] < 1.3 for record in evaluations)
    assert abs(evaluations[0]["eval_over_train_before"] - 1) > abs(evaluations[0]["eval_over_train"] - 1)
    model = load_world_model(trained_run)
    assert model.facts["steps"] == 250
    assert model.action_std.min() > 0.1


@pytest.mark.parametrize("name", ["none", "sigreg"])
def test_a_collapsed_run_stops_with_the_reason(name: str, episodes: Episodes, tmp_path: Path) -> None:
    regulariser = RegulariserConfig(name=name, strength=0.0, num_projections=32)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"collapsed: the latents hardly vary.*below 0.2.*strength"):
        fit_world(settings(200, regulariser=regulariser), episodes, tmp_path / "run")
    result = open_run(tmp_path / "run")["result"]
    assert result["kind"] == "world.collapse"
    assert "hardly vary" in result["collapsed"]
    assert result["spread"] < 0.2
    assert not (tmp_path / "run" / "model").exists()
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps()[-1] == result["step"]
    with pytest.raises(TrainingError, match="hardly vary"):
        fit_world(settings(200, regulariser=regulariser), episodes, tmp_path / "run", exists="resume")


def test_a_collapse_can_be_recorded_instead(episodes: Episodes, tmp_path: Path) -> None:
    regulariser = RegulariserConfig(name="none")
    chosen = settings(100, regulariser=regulariser, alarm=AlarmConfig(action="record"))
    result = fit_world(chosen, episodes, tmp_path / "run")
    assert "hardly vary" in result["collapsed"]


def test_vicreg_keeps_the_latents_alive_too(episodes: Episodes, tmp_path: Path) -> None:
    result = fit_world(settings(100, regulariser=RegulariserConfig(name="vicreg")), episodes, tmp_path / "run")
    assert result["collapsed"] is None
    assert result["spread"] > 0.35


def test_an_interrupted_run_resumes_to_the_same_bits(
    episodes: Episodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(60, model=dataclasses.replace(preset("tiny"), predictor=preset("small").predictor))
    chosen = dataclasses.replace(
        chosen, loop=dataclasses.replace(chosen.loop, evaluate_every=20, checkpoint_every=20), calibration_windows=32
    )
    whole = fit_world(chosen, episodes, tmp_path / "whole")
    inner, calls = Windows.batch, []

    def interrupting(self: Windows, step: int) -> object:
        calls.append(step)
        if step == 30:
            signal.raise_signal(signal.SIGINT)
        return inner(self, step)

    monkeypatch.setattr(Windows, "batch", interrupting)
    with pytest.raises(InterruptedRunError):
        fit_world(chosen, episodes, tmp_path / "broken")
    monkeypatch.undo()
    resumed = fit_world(chosen, episodes, tmp_path / "broken", exists="resume")
    assert {**whole, "frames_per_second": 0} == {**resumed, "frames_per_second": 0}
    one, two = (load_world_model(tmp_path / name).state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "broken/metrics.jsonl").read_bytes()


def test_other_episodes_are_refused_on_resume(episodes: Episodes, trained_run: Path) -> None:
    (trained_run / "result.json").rename(trained_run / "kept.json")
    try:
        with pytest.raises(ConfigError, match="trained on other episodes"):
            fit_world(settings(250), episodes.select(range(50)), trained_run, exists="resume")
    finally:
        (trained_run / "kept.json").rename(trained_run / "result.json")


def test_recalibration_gives_the_statistics_of_the_data_and_keeps_modes(episodes: Episodes) -> None:
    model = WorldModel(preset("tiny"), seed=0)
    windows = Windows(episodes, model, batch_size=32, seed=0).spread(64, batch=64)
    model.train()
    recalibrate(model, lambda part: (part(batch.frames_BTHWC, batch.blocks_BTA) for batch in windows))
    assert model.training
    assert model.projector.norm.momentum == 0.1
    with torch.no_grad():
        (batch,) = windows
        rows = model.projector.up(model._features(batch.frames_BTHWC.flatten(0, 1)))
    assert torch.allclose(model.projector.norm.running_mean, rows.mean(0), atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(model.projector.norm.running_var, rows.var(0), rtol=1e-4)  # type: ignore[arg-type]


def test_windows_stay_in_their_episode_and_actions_leave_their_frame(episodes: Episodes) -> None:
    model = WorldModel(preset("tiny"))
    windows = Windows(episodes, model, batch_size=16, seed=1)
    batch = windows.batch(3)
    frames, actions = episodes.array("frames"), episodes.array("actions")
    for window, blocks in zip(batch.frames_BTHWC.numpy(), batch.blocks_BTA.numpy(), strict=True):
        (row,) = np.flatnonzero((frames == window[0]).all(axis=(1, 2, 3)))[:1]
        assert row % 60 + 15 < 60
        for step in range(4):
            assert np.array_equal(frames[row + 5 * step], window[step])
        assert np.allclose(actions[row : row + 15].reshape(3, 10), blocks, atol=1e-6)
    assert windows.num_windows == 60 * (60 - 15)
    again = Windows(episodes, model, batch_size=16, seed=1).batch(3)
    assert torch.equal(again.frames_BTHWC, batch.frames_BTHWC)


def remade(episodes: Episodes, **changes: np.ndarray | None) -> Episodes:
    arrays = {name: changes.get(name, value) for name, value in episodes.arrays.items()}
    return Episodes(
        {name: value for name, value in arrays.items() if value is not None},
        starts=episodes.starts,
        lengths=episodes.lengths,
        terminated=episodes.terminated,
        truncated=episodes.truncated,
        source="data.npz",
    )


def test_bad_episodes_are_named_and_leave_no_run_behind(episodes: Episodes, tmp_path: Path) -> None:
    frames = episodes.array("frames")
    for changes, words in (
        ({"frames": None}, "holds no 'frames'"),
        ({"frames": frames[:, :20]}, "square frames"),
        ({"frames": frames.astype(np.float32)}, "reads uint8"),
    ):
        with pytest.raises(DataError, match=words):
            fit_world(settings(), remade(episodes, **changes), tmp_path / "run")
    actions = episodes.actions.copy()
    actions[[0, 60, 119]] = np.nan
    assert action_statistics(remade(episodes, actions=actions)).num_nan_rows == 3
    actions[70, 1] = np.nan
    with pytest.raises(DataError, match=r"data.npz: the action at step 10 of episode 1 is not finite \(1 such"):
        fit_world(settings(), remade(episodes, actions=actions), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_split_is_by_whole_episodes(episodes: Episodes) -> None:
    parts = split_episodes(episodes, settings())
    assert (parts["train"].num_episodes, parts["held_out"].num_episodes) == (54, 6)
    firsts = {tuple(part["observations"][0]) for name in parts for part in [parts[name].episode(0)]}
    assert len(firsts) == 2


def test_monitors_know_a_line_a_ball_and_a_straight_path() -> None:
    draws = torch.Generator().manual_seed(0)
    ball = torch.randn(4000, 8, generator=draws)
    assert effective_rank(ball) == pytest.approx(8, rel=0.02)
    assert effective_rank(ball[:, :1] * torch.ones(1, 8)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.zeros(10, 8)) == 0
    line = torch.arange(5.0)[None, :, None] * ball[:3, None]
    assert straightness(line) == pytest.approx(1)
    assert straightness(line[:, [0, 1, 0, 1]]) == pytest.approx(-1)
    alive, dead = ({"step": 1, "spread": s, "effective_rank": 9.0} for s in (0.9, 0.1))
    assert collapse_reason([dead, alive], AlarmConfig()) is None
    assert collapse_reason([dead], AlarmConfig()) is None
    assert "hardly vary" in (collapse_reason([alive, dead, dead], AlarmConfig()) or "")
    flat = {"step": 9, "spread": 0.9, "effective_rank": 1.1}
    assert "one direction" in (collapse_reason([flat, flat], AlarmConfig()) or "")


def test_settings_that_would_save_unrecalibrated_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="no multiple of evaluate_every"):
        settings(loop=dataclasses.replace(settings().loop, checkpoint_every=70))
    with pytest.raises(ConfigError, match="accumulating does not make a larger batch"):
        settings(loop=dataclasses.replace(settings().loop, accumulate=2))
    assert settings(batch_size=64).resolved_weight * 64 == settings(batch_size=128).resolved_weight * 128
