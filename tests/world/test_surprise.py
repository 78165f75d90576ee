"""Surprise: exact on an oracle, calibrated on nominal data, the same bits online and offline, and its benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from forethought.core.errors import ArtefactError, ConfigError, InputError
from forethought.core.rng import generator
from forethought.data import Episodes
from forethought.world import SurpriseMonitor, WorldModel, preset
from forethought.world.surprise import (
    PERTURBATIONS,
    BenchmarkConfig,
    auroc,
    perturbation,
    psychometric_curve,
    separation,
    surprise_benchmark,
)
from forethought.world.surprise.calibration import shrunk_covariance
from tests.world.conftest import Dots
from tests.world.dots import SPEED, dot_episodes

SETTINGS = BenchmarkConfig(num_pairs=24, low=0.05, high=0.95)


@pytest.fixture(scope="module")
def nominal() -> Episodes:
    return dot_episodes(40, 60, seed=7)


@pytest.fixture(scope="module")
def others() -> Episodes:
    return dot_episodes(16, 60, seed=9)


@pytest.fixture(scope="module")
def monitor(trained: WorldModel, nominal: Episodes) -> SurpriseMonitor:
    made = SurpriseMonitor(trained)
    made.calibrate(nominal)
    return made


@pytest.mark.parametrize("score", ["mahalanobis", "mse", "log-z"])
def test_online_equals_offline_bit_for_bit(
    score: str, trained: WorldModel, nominal: Episodes, others: Episodes
) -> None:
    monitor = SurpriseMonitor(trained, score)
    monitor.calibrate(nominal)
    episode = others.episode(2)
    trace = monitor.trace(episode["frames"], episode["actions"])
    monitor.reset()
    for step in range(60):
        event = monitor.judge(episode["frames"][step])
        monitor.record(episode["actions"][step])
        for name in ("raw", "error", "z", "p", "flag", "drift", "alarm", "valid"):
            mine, theirs = getattr(event, name), getattr(trace, name)[step]
            assert mine == theirs or (np.isnan(mine) and np.isnan(theirs)), (name, step)
    assert not trace.valid[:5].any()
    assert trace.valid[5:].all()
    (batch,) = monitor.traces(episode["frames"][None], episode["actions"][None])
    assert np.allclose(batch.z[5:], trace.z[5:], atol=1e-3)
    pair = [others.episode(index) for index in (5, 2)]
    both = monitor.traces(np.stack([e["frames"] for e in pair]), np.stack([e["actions"] for e in pair]))
    assert np.allclose(both[1].z[5:], trace.z[5:], atol=1e-3)


class Oracle(WorldModel):
    """A perfect predictor: its latent is the place of the dot, and it knows how the dot moves."""

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        shade = frames[..., 0].float()
        grid = (torch.arange(32) + 0.5) / 32
        total = shade.sum((-1, -2))
        return torch.stack([(shade.sum(-2) * grid).sum(-1), (shade.sum(-1) * grid).sum(-1)], -1) / total[..., None]

    def predict(self, z_BTD: torch.Tensor, blocks_BTA: torch.Tensor) -> torch.Tensor:
        return z_BTD + SPEED * blocks_BTA.unflatten(-1, (5, 2)).clamp(-1, 1).sum(-2)


def test_a_perfect_predictor_is_surprised_by_the_squared_jump_and_by_nothing_else() -> None:
    oracle = Oracle(preset("tiny")).eval()
    monitor = SurpriseMonitor(oracle, "mse", history=1)
    calm = dot_episodes(20, 40, seed=3)
    monitor.calibrate(calm)
    positions = np.tile([0.5, 0.5], (40, 1))
    positions[25:] += [0.2, -0.1]
    from tests.world.dots import draw

    trace = monitor.trace(draw(positions), np.zeros((40, 2), np.float32))
    assert np.nanmax(trace.raw[:25]) < 1e-6
    assert np.allclose(trace.raw[25:30], (0.2**2 + 0.1**2) / 2, rtol=0.02)
    assert np.nanmax(trace.raw[30:]) < 1e-6
    assert trace.flag[25:30].all()
    assert not trace.flag[:25].any()


def test_it_is_calibrated_on_nominal_data(monitor: SurpriseMonitor, others: Episodes) -> None:
    traces = [monitor.trace(e["frames"], e["actions"]) for e in (others.episode(i) for i in range(16))]
    # One frame of each phase-independent stretch, so that the binomial interval is honest.
    p = np.concatenate([trace.p[15::20] for trace in traces])
    flagged = int((p < 0.05).sum())
    assert binomtest(flagged, len(p), 0.05).pvalue > 0.001
    z = np.concatenate([trace.z[15:] for trace in traces])
    assert abs(z.mean()) < 0.5
    assert 0.6 < z.std() < 1.7
    assert abs(np.mean(p) - 0.5) < 0.15


def test_broken_physics_is_told_from_nominal_runs(monitor: SurpriseMonitor, others: Episodes) -> None:
    chosen = [perturbation("teleport", distance=0.4), perturbation("sign_flip"), perturbation("recolour")]
    result = surprise_benchmark(monitor, Dots(), others, chosen, SETTINGS)
    teleport, flip, _ = result["perturbations"].values()
    assert teleport["auroc"] > 0.9
    assert teleport["auroc_interval"][0] > 0.8
    assert teleport["detected"] > 0.7
    assert teleport["paired_t_p"] < 0.01
    assert flip["auroc"] > 0.75
    assert result["false_flag_rate"] < 0.12
    curve = psychometric_curve(monitor, Dots(), others, [0.0, 0.1, 0.4], SETTINGS)["auroc"]
    assert curve[0] == 0.5
    assert curve[0] < curve[1] < curve[2]


def test_every_perturbation_leaves_the_past_alone_and_changes_what_follows(others: Episodes) -> None:
    from forethought.world.surprise.benchmark import choose_runs, play

    runs, arena = choose_runs(others, SETTINGS), Dots()
    twin = play(arena, runs, SETTINGS)
    for name in PERTURBATIONS:
        broken = perturbation(name, distance=0.3) if name == "teleport" else perturbation(name)
        frames = play(arena, runs, SETTINGS, broken)
        assert np.array_equal(frames[:, : SETTINGS.event], twin[:, : SETTINGS.event]), name
        window = slice(SETTINGS.event + broken.first, SETTINGS.event + 10)
        assert (frames[:, window] != twin[:, window]).any(axis=(1, 2, 3, 4)).mean() > 0.9, name
    nothing = play(arena, runs, SETTINGS, perturbation("teleport", distance=0.0))
    assert np.array_equal(nothing, twin)
    with pytest.raises(ConfigError, match="unknown perturbation 'telport'"):
        perturbation("telport")


def test_a_missing_frame_is_no_alarm_and_clouds_only_what_needs_it(monitor: SurpriseMonitor, others: Episodes) -> None:
    episode: dict[str, Any] = others.episode(0)
    monitor.reset()
    events = [
        monitor.step(None if step == 20 else episode["frames"][step], episode["actions"][step]) for step in range(50)
    ]
    missing = [event.step for event in events if not event.valid]
    assert missing == [0, 1, 2, 3, 4, 20, 25, 30, 35]
    assert all(np.isnan(events[step].z) and not events[step].flag and not events[step].alarm for step in missing)
    blank = episode["actions"].copy()
    blank[3] = np.nan
    assert np.isfinite(monitor.trace(episode["frames"], blank).z[5:]).all()


def test_a_saved_monitor_judges_the_same_and_only_for_its_model(
    monitor: SurpriseMonitor, trained: WorldModel, others: Episodes, tmp_path: Path
) -> None:
    place = monitor.save(tmp_path / "surprise")
    loaded = SurpriseMonitor.load(trained, place)
    episode = others.episode(1)
    one, two = (each.trace(episode["frames"], episode["actions"]) for each in (monitor, loaded))
    assert np.array_equal(one.z, two.z, equal_nan=True)
    assert np.array_equal(one.drift, two.drift)
    with pytest.raises(ArtefactError, match="calibrated for another model"):
        SurpriseMonitor.load(WorldModel(preset("tiny"), seed=5).eval(), place)


def test_misuse_is_refused(trained: WorldModel, nominal: Episodes) -> None:
    with pytest.raises(InputError, match="not calibrated"):
        SurpriseMonitor(trained).judge(None)
    with pytest.raises(InputError, match="training mode"):
        SurpriseMonitor(WorldModel(preset("tiny")))
    with pytest.raises(ConfigError, match="1 to 3"):
        SurpriseMonitor(trained, history=4)
    with pytest.raises(ConfigError, match="unknown surprise score"):
        SurpriseMonitor(trained, "mahalanobi").calibrate(nominal)
    with pytest.raises(InputError, match="give at least 2"):
        SurpriseMonitor(trained).calibrate(nominal.select([0]))
    monitor = SurpriseMonitor(trained, "mse")
    monitor.calibrate(nominal)
    trained.train()
    try:
        with pytest.raises(InputError, match="training mode"):
            monitor.judge(nominal.array("frames")[0])
    finally:
        trained.eval()


def test_auroc_and_separation_on_known_numbers() -> None:
    assert auroc([3, 4], [1, 2]) == 1.0
    assert auroc([1, 2], [1, 2]) == 0.5
    assert auroc([2], [1, 2, 3, 4]) == 0.375
    with pytest.raises(InputError, match="none NaN"):
        auroc([np.nan], [1.0])
    draws = generator(0, "test")
    base = draws.normal(size=(50, 20))
    found = separation(base[:, :5] + 1.0, base, base[:, :5])
    assert found.auroc.low < 0.76 < found.auroc.high  # Phi(1 / sqrt 2)
    assert found.paired_accuracy.estimate == 1.0
    same = separation(draws.normal(size=(50, 5)), base, base[:, :5])
    assert same.auroc.low < 0.5 < same.auroc.high
    assert same.p_value > 0.001


def test_shrinkage_keeps_what_the_data_show_and_rounds_what_they_do_not() -> None:
    draws = generator(1, "test")
    scale = np.array([4.0, 1.0, 0.25])
    many = shrunk_covariance(draws.normal(size=(20_000, 3)) * np.sqrt(scale))
    assert np.allclose(np.diag(many), scale, rtol=0.05)
    few = shrunk_covariance(draws.normal(size=(10, 40)))
    values = np.linalg.eigvalsh(few)
    assert values.min() > 0.3 * values.max()
