"""Surprise: exact on an oracle, calibrated on nominal data, the same bits online and offline, and its benchmark."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from forethought.core.errors import ArtefactError, ConfigError, DataError, InputError
from forethought.core.rng import generator
from forethought.data import Episodes
from forethought.world import SurpriseMonitor, WorldModel, fit_world, load_world_model, preset
from forethought.world.config import AlarmConfig, RegulariserConfig
from forethought.world.surprise import (
    PERTURBATIONS,
    BenchmarkConfig,
    auroc,
    perturbation,
    psychometric_curve,
    separation,
    surprise_benchmark,
)
from forethought.world.surprise.benchmark import choose_runs, flag_rate, nominal_flags, play
from forethought.world.surprise.calibration import fit_calibration, shrunk_covariance
from tests.world.conftest import Dots, settings
from tests.world.dots import SPEED, dot_episodes

NAMES = ("frames", "actions")
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
    z = np.concatenate([trace.z[15:] for trace in traces])
    assert abs(z.mean()) < 0.5
    assert 0.6 < z.std() < 1.7
    p = np.concatenate([trace.p[15:] for trace in traces])
    assert abs(np.mean(p) - 0.5) < 0.1
    assert not any(trace.alarm.any() for trace in traces)


@pytest.mark.parametrize("score", ["mahalanobis", "mse", "log-z"])
def test_false_alarms_lie_within_their_binomial_interval(score: str, trained: WorldModel) -> None:
    """Two frames of each of 120 fresh episodes, far apart, so that each is a trial of its own."""
    monitor = SurpriseMonitor(trained, score, alpha=0.05)
    monitor.calibrate(dot_episodes(120, 60, seed=21), max_windows=10_000)
    fresh = dot_episodes(120, 60, seed=22)
    frames, actions = (fresh.array(name).reshape(120, 60, *fresh.array(name).shape[1:]) for name in NAMES)
    flags = np.stack([trace.flag for trace in monitor.traces(frames, actions)])[:, [22, 57]]
    assert binomtest(int(flags.sum()), flags.size, 0.05).pvalue > 0.02
    short = np.stack([trace.p for trace in monitor.traces(frames[:, :15], actions[:, :15])])[:, [7, 12]]
    assert binomtest(int((short < 0.05).sum()), short.size, 0.05).pvalue > 0.01


def test_broken_physics_is_told_from_nominal_runs(monitor: SurpriseMonitor, others: Episodes) -> None:
    chosen = [perturbation("teleport", distance=0.4), *map(perturbation, ("sign_flip", "vanish", "recolour"))]
    result = surprise_benchmark(monitor, Dots(), others, chosen, SETTINGS)
    teleport, flip, vanished, recolour = result["perturbations"].values()
    assert teleport["auroc"] > 0.98
    assert teleport["auroc_interval"][0] > 0.95
    assert teleport["detected"] > 0.9
    assert teleport["median_delay"] == 0
    assert teleport["paired_t_p"] < 1e-6
    assert teleport["mean_z"] > 2 * recolour["mean_z"]
    assert flip["auroc"] > 0.9
    assert vanished["auroc"] > 0.9
    assert result["false_flag_rate"] < 0.1
    assert result["false_alarm_episodes"] == 0
    assert result["failures"] == []


def test_false_flags_are_counted_on_whole_episodes(monitor: SurpriseMonitor) -> None:
    mixed = dot_episodes(4, 60, seed=31)
    kept = np.r_[0:95, 120:240]
    short = Episodes(
        {name: rows[kept] for name, rows in mixed.arrays.items()},
        starts=np.array([0, 60, 95, 155]),
        lengths=np.array([60, 35, 60, 60]),
        terminated=mixed.terminated,
        truncated=mixed.truncated,
    )
    flags, judged = nominal_flags(monitor, short, 90)
    assert flags.shape == (2, 60)
    for index, length in enumerate((60, 35)):
        rows = short.episode(index)
        trace = monitor.trace(rows["frames"], rows["actions"])
        assert np.array_equal(judged[index, :length], trace.valid)
        assert (flags[index, :length] == trace.flag).mean() > 0.98
    assert not judged[1, 35:].any()
    assert not judged[:, :5].any()
    loose = copy.copy(monitor)
    loose.alpha = 0.5
    result = surprise_benchmark(loose, Dots(), mixed, [], dataclasses.replace(SETTINGS, num_pairs=4, max_nominal=240))
    assert 0.2 < result["false_flag_rate"] < 0.8
    assert result["false_flag_rate"] == flag_rate(*nominal_flags(loose, mixed, 240))[0].estimate


def test_the_psychometric_curve_rises_from_one_half(monitor: SurpriseMonitor, others: Episodes) -> None:
    found = psychometric_curve(monitor, Dots(), others, [0.0, 0.05, 0.1, 0.2, 0.4], SETTINGS)
    curve = found["auroc"]
    assert curve[0] == 0.5
    assert curve == sorted(curve)
    assert curve[1] < 0.8
    assert curve[-1] > 0.98
    assert all(low <= each <= high for low, each, high in zip(found["low"], curve, found["high"], strict=True))
    assert found["high"][1] < found["low"][-1]


@pytest.fixture(scope="module")
def collapsed(episodes: Episodes, tmp_path_factory: pytest.TempPathFactory) -> WorldModel:
    out = tmp_path_factory.mktemp("collapsed") / "run"
    chosen = settings(60, regulariser=RegulariserConfig(name="none"), alarm=AlarmConfig(action="record"))
    chosen = dataclasses.replace(
        chosen, loop=dataclasses.replace(chosen.loop, evaluate_every=30, checkpoint_every=60), evaluation_windows=64
    )
    assert fit_world(chosen, episodes, out)["spread"] < 0.15
    return load_world_model(out)


@pytest.mark.parametrize("score", ["mahalanobis", "mse", "log-z"])
def test_a_collapsed_model_fails_the_benchmark_and_is_told_why(
    score: str, collapsed: WorldModel, nominal: Episodes, others: Episodes
) -> None:
    monitor = SurpriseMonitor(collapsed, score)
    monitor.calibrate(nominal)
    chosen = [perturbation("teleport", distance=0.4), perturbation("recolour")]
    result = surprise_benchmark(monitor, Dots(), others, chosen, SETTINGS)
    assert result["perturbations"]["teleport"]["auroc"] < 0.8
    assert any("recolour, a change of looks only" in reason for reason in result["failures"])


def test_flags_that_come_together_count_as_fewer() -> None:
    draws = generator(2, "test")
    alone = draws.random((40, 50)) < 0.05
    rate, effective = flag_rate(alone, np.ones((40, 50), bool))
    assert rate.estimate == alone.mean()
    assert 0.05 in rate
    assert effective > 1000
    together = np.repeat(draws.random((40, 1)) < 0.1, 50, axis=1)
    wide, few = flag_rate(together, np.ones((40, 50), bool))
    assert few == pytest.approx(40, rel=0.1)
    assert wide.high - wide.low > 3 * (rate.high - rate.low)
    unjudged = np.ones((40, 50), bool)
    unjudged[:, :10] = False
    assert flag_rate(alone, unjudged)[0].estimate == alone[:, 10:].mean()
    with pytest.raises(DataError, match="no frame was judged"):
        flag_rate(alone, np.zeros((40, 50), bool))


def test_what_vanishes_leaves_the_room_empty_and_a_duplicate_shows_two(others: Episodes) -> None:
    runs, arena = choose_runs(others, SETTINGS), Dots()
    twin = play(arena, runs, SETTINGS).astype(float)[:, SETTINGS.event :].sum(axis=(2, 3, 4))
    gone, two = (play(arena, runs, SETTINGS, perturbation(name)) for name in ("vanish", "duplicate"))
    assert not gone[:, SETTINGS.event :].any()
    light = two.astype(float)[:, SETTINGS.event :].sum(axis=(2, 3, 4)) / twin
    assert np.median(light) == pytest.approx(2.0, abs=0.1)
    arena.reset(runs.starts_BS)
    assert np.array_equal(arena.states(), runs.starts_BS)


def test_every_perturbation_leaves_the_past_alone_and_changes_what_follows(others: Episodes) -> None:
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


@pytest.mark.parametrize("score", ["mahalanobis", "mse", "log-z"])
def test_a_saved_monitor_judges_the_same(
    score: str, trained: WorldModel, nominal: Episodes, others: Episodes, tmp_path: Path
) -> None:
    monitor = SurpriseMonitor(trained, score, 2, alpha=0.3)
    calibration = monitor.calibrate(nominal.select(range(16)), false_alarm=0.2, horizon=200)
    loaded = SurpriseMonitor.load(trained, monitor.save(tmp_path / "surprise"))
    assert loaded.calibration is not None
    assert (loaded.alpha, loaded.history, loaded.score) == (0.3, 2, score)
    assert loaded.calibration.to_dict() == calibration.to_dict()
    assert loaded.calibration.precisions.keys() == calibration.precisions.keys()
    episode = others.episode(1)
    one, two = (each.trace(episode["frames"], episode["actions"]) for each in (monitor, loaded))
    for name in ("raw", "error", "z", "p", "flag", "drift", "alarm", "valid"):
        assert np.array_equal(getattr(one, name), getattr(two, name), equal_nan=name != "flag"), name
    assert one.flag.any()


def test_a_calibration_is_for_one_model_its_frames_and_its_actions(
    monitor: SurpriseMonitor, trained: WorldModel, tmp_path: Path
) -> None:
    place = monitor.save(tmp_path / "surprise")
    weights = copy.deepcopy(trained)
    with torch.no_grad():
        weights.predictor.positions[0, 0, 0] += 1e-3
    actions = copy.deepcopy(trained)
    actions.action_std *= 1.01
    skipping = WorldModel(dataclasses.replace(trained.config, frame_skip=4)).eval()
    larger = WorldModel(dataclasses.replace(trained.config, image_size=48)).eval()
    odd = {"model": weights, "action_normaliser": actions, "frame_skip": skipping, "image_size": larger}
    for name, model in odd.items():
        with pytest.raises(ArtefactError, match=f"calibrated for another model: {name} was"):
            SurpriseMonitor.load(model, place)


def test_a_small_lasting_change_is_alarmed_by_its_sum_and_the_sum_is_pages(
    trained: WorldModel, nominal: Episodes, others: Episodes
) -> None:
    monitor = SurpriseMonitor(trained, "log-z")
    calibration = monitor.calibrate(nominal, false_alarm=0.05, horizon=100)
    runs = choose_runs(others, SETTINGS)
    actions_BTA = runs.actions_TBA.swapaxes(0, 1)
    frames = play(Dots(), runs, SETTINGS, perturbation("sign_flip"))
    traces = monitor.traces(frames, actions_BTA)
    before = np.stack([trace.alarm[: SETTINGS.event] for trace in traces])
    after = np.stack([trace.alarm[SETTINGS.event :] for trace in traces])
    assert before.any(axis=1).mean() < 0.2
    assert after.any(axis=1).mean() > 0.8
    online = monitor.trace(frames[0], actions_BTA[0])
    assert np.allclose(online.drift, traces[0].drift, atol=1e-2)
    for trace in (online, traces[0]):
        total = 0.0
        for step in range(SETTINGS.length):
            if trace.valid[step]:
                total = max(0.0, total + trace.z[step] - calibration.cusum.drift)
            assert trace.drift[step] == pytest.approx(total, abs=1e-9)
            assert trace.alarm[step] == (trace.valid[step] and total > calibration.cusum.threshold)


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


@pytest.mark.parametrize("score", ["mahalanobis", "mse", "log-z"])
def test_each_context_length_has_a_scale_of_its_own_and_no_p_is_zero(score: str) -> None:
    draws = generator(3, "test")
    residuals = [{1: 3.0 * draws.normal(size=(30, 4)), 3: draws.normal(size=(30, 4))} for _ in range(8)]
    found = fit_calibration(score, residuals, {}, false_alarm=0.01, horizon=100)
    row = 2.5 * np.ones(4)
    p = {context: found.p(found.error(row, context), context) for context in (1, 3)}
    assert p[1] > 0.3
    assert p[3] < 0.02
    if score == "mahalanobis":
        assert all(found.novelty[context].errors_N.mean() == pytest.approx(1.0, abs=0.25) for context in (1, 3))
    judged = len(found.novelty[3].errors_N)
    assert judged == (120 if score == "mahalanobis" else 240)
    assert found.p(1e9, 3) == 1 / (judged + 1)
    assert found.p(0.0, 3) == 1.0
