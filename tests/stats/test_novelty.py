"""Novelty: valid p-values with ties, robust z, and alarms at the rate that was asked for."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from forethought.core.errors import ArtefactError, InputError
from forethought.stats import CUSUM, Novelty


@pytest.mark.parametrize("decimals", [9, 0])
def test_conformal_p_values_are_valid_also_with_ties(decimals: int) -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(3000):
        errors = np.round(rng.gamma(2.0, 2.0, size=20), decimals)
        p_values.append(Novelty.fit(errors[:19]).conformal_p(errors[19]))
    for alpha in (0.05, 0.1, 0.25, 0.5):
        share = float(np.mean(np.array(p_values) <= alpha))
        assert share <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / 3000)
        assert decimals == 0 or share >= alpha - 4 * math.sqrt(alpha * (1 - alpha) / 3000), "exact without ties"


def test_p_and_z_of_single_errors() -> None:
    novelty = Novelty.fit([1.0, 2.0, 4.0, 8.0, 16.0])
    assert novelty.z(4.0) == 0
    assert novelty.z(8.0) == pytest.approx(1 / 1.4826)
    assert novelty.conformal_p(100.0) == pytest.approx(1 / 6)
    assert novelty.conformal_p(16.0) == pytest.approx(2 / 6)
    assert novelty.conformal_p(0.0) == 1.0
    assert novelty.conformal_p(math.nan) == pytest.approx(1 / 6)
    assert novelty.z(math.nan) == math.inf
    assert novelty.z(0.0) == novelty.z(1.0), "a log needs a floor: the smallest error seen"
    assert novelty.z(np.array([1.0, 4.0])).shape == (2,)
    assert novelty.conformal_p([1.0, 4.0]).tolist() == [1.0, 4 / 6]


def test_a_few_wild_calibration_errors_do_not_move_z() -> None:
    errors = np.random.default_rng(1).lognormal(size=500)
    clean, dirty = Novelty.fit(errors), Novelty.fit(np.append(errors, [1e9] * 20))
    assert dirty.z(20.0) == pytest.approx(clean.z(20.0), rel=0.12)


def test_mostly_equal_errors_still_have_a_scale() -> None:
    novelty = Novelty.fit([1.0, 1.0, 1.0, 1.0, 2.0])
    assert math.isfinite(novelty.z(2.0))
    assert novelty.z(2.0) > 1
    assert Novelty.fit([0.0, 1.0]).z(math.e) == pytest.approx(1.0), "one positive error: the log has no spread"


def test_calibration_survives_json() -> None:
    novelty = Novelty.fit(np.random.default_rng(2).gamma(2.0, size=100))
    again = Novelty.from_dict(json.loads(json.dumps(novelty.to_dict())))
    probe = np.geomspace(1e-3, 1e3, 50)
    np.testing.assert_array_equal(again.z(probe), novelty.z(probe))
    np.testing.assert_array_equal(again.conformal_p(probe), novelty.conformal_p(probe))


def alarm_share(scores: np.ndarray, detector: CUSUM) -> float:
    alarms = 0
    for path in scores:
        detector.reset()
        alarms += any([detector.update(float(score)) for score in path])
    return alarms / len(scores)


def test_cusum_keeps_its_false_alarm_rate_and_sees_a_small_drift() -> None:
    rng = np.random.default_rng(3)
    detector = CUSUM.calibrate(rng.standard_normal(20_000), false_alarm=0.1, horizon=200)
    assert 0.06 < alarm_share(rng.standard_normal((500, 200)), detector) < 0.145
    assert alarm_share(rng.standard_normal((100, 200)) + 1.0, detector) > 0.99


def test_cusum_blocks_answer_to_correlated_scores() -> None:
    rng = np.random.default_rng(4)

    def walk(num: int) -> np.ndarray:
        scores = np.zeros(num)
        for t in range(1, num):
            scores[t] = 0.9 * scores[t - 1] + math.sqrt(1 - 0.81) * rng.standard_normal()
        return scores

    nominal = walk(20_000)
    naive = CUSUM.calibrate(nominal, false_alarm=0.1, horizon=100)
    blocked = CUSUM.calibrate(nominal, false_alarm=0.1, horizon=100, block=50)
    fresh = walk(20_000).reshape(200, 100)
    assert alarm_share(fresh, naive) > 0.3, "resampling single scores forgets that errors come in runs"
    assert 0.02 < alarm_share(fresh, blocked) < 0.2


def test_cusum_survives_json_in_mid_course() -> None:
    detector = CUSUM(threshold=3.0, drift=0.5)
    assert not detector.update(2.0)
    again = CUSUM.from_dict(json.loads(json.dumps(detector.to_dict())))
    assert again == detector
    assert not again.update(-9.0)
    assert again.value == 0
    assert again.update(math.nan)
    json.dumps(again.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Novelty.fit([1.0]),
        lambda: Novelty.fit([1.0, -1.0]),
        lambda: Novelty.fit([1.0, math.nan]),
        lambda: Novelty.fit([1.0, 1.0]),
        lambda: CUSUM.calibrate([1.0]),
        lambda: CUSUM.calibrate([1.0, math.inf]),
        lambda: CUSUM.calibrate([1.0, 2.0], false_alarm=0.0),
        lambda: CUSUM.calibrate([1.0, 2.0], false_alarm=1e-9),
        lambda: CUSUM.calibrate([1.0, 2.0], block=3),
        lambda: CUSUM.calibrate([1.0, 2.0], horizon=0),
    ],
)
def test_bad_input_is_named(call: object) -> None:
    with pytest.raises(InputError):
        call()  # type: ignore[operator]


def test_bad_artefacts_are_named() -> None:
    for values in ({}, {"errors": "x"}, {"errors": [1.0]}):
        with pytest.raises(ArtefactError):
            Novelty.from_dict(values)
    with pytest.raises(ArtefactError):
        CUSUM.from_dict({"threshold": 1.0})
    with pytest.raises(ArtefactError, match="CUSUM"):
        CUSUM.from_dict({"threshold": math.nan, "drift": 0.5, "value": 0.0})
