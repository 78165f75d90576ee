"""Limits of limits, and the data efficiency that is read off them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from forethought.core.errors import InputError
from forethought.stats import data_efficiency, fit_power_law, fit_tiers
from forethought.stats.divergence import clopper_pearson

MEMBERS, SIZES, DATA = np.arange(1.0, 5.0), np.array([0.15, 0.3, 0.6, 1.4]), np.array([0.21, 0.42, 0.84, 1.68])


def grid(*axes: np.ndarray) -> list[np.ndarray]:
    return [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]


def two_tiers() -> tuple[list[np.ndarray], np.ndarray]:
    k, n = grid(MEMBERS, SIZES)
    return [k, n], 0.29 / k + 0.06 / n**1.1 + 3.17


def test_exact_chain() -> None:
    axes, loss = two_tiers()
    law = fit_tiers(axes, loss, num_bootstrap=200)
    assert law.asymptote == pytest.approx(3.17, rel=1e-6)
    assert law.identified
    assert law.inner[0][(0.3,)].amplitude == pytest.approx(0.29, rel=1e-6)


def test_three_tiers_reach_the_triple_limit() -> None:
    k, n, d = grid(MEMBERS[:3], SIZES, DATA)
    loss = 0.29 / k + 0.06 / n**1.1 + 0.8 / d**0.5 + 2.4
    noise = 0.0005 * np.random.default_rng(0).standard_normal(len(k))
    law = fit_tiers([k, n, d], loss + noise, 0.0005, num_bootstrap=200)
    assert law.interval[0] < 2.4 < law.interval[1]
    assert law.interval[1] - law.interval[0] < 0.1
    assert [len(tier) for tier in law.inner] == [16, 4]
    assert law.outer.exponent == pytest.approx(0.5, abs=0.1)


def chain_hits(num: int) -> int:
    axes, loss = two_tiers()
    hits = 0
    for i in range(num):
        noise = 0.002 * np.random.default_rng([9, i]).standard_normal(len(loss))
        low, high = fit_tiers(axes, loss + noise, 0.002, num_bootstrap=200, seed=i).interval
        hits += low <= 3.17 <= high
    return hits


def test_the_chain_covers_at_its_level() -> None:
    low, high = clopper_pearson(chain_hits(15), 15, level=0.999)
    assert low <= 0.97
    assert high >= 0.93


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_chain_covers_in_500_simulations() -> None:
    assert 0.92 <= chain_hits(500) / 500 <= 0.98


def test_inner_errors_widen_the_outer_interval() -> None:
    axes, loss = two_tiers()
    noise = 0.002 * np.random.default_rng(4).standard_normal(len(loss))
    law = fit_tiers(axes, loss + noise, 0.002, num_bootstrap=300)
    joint = law.interval
    design = np.stack([1 / MEMBERS, np.ones(4)], axis=1)
    sd = 0.002 * np.linalg.inv(design.T @ design)[1, 1] ** 0.5
    np.testing.assert_allclose(law.outer.noise, sd, rtol=0.2)
    limits = [fit_power_law(MEMBERS, (loss + noise).reshape(4, 4)[:, j], 0.002, exponent=1).asymptote for j in range(4)]
    alone = fit_power_law(SIZES, limits, 0.002 / 2).interval
    assert joint[1] - joint[0] > 1.2 * (alone[1] - alone[0]), (
        "the last tier alone knows nothing of the first one's noise"
    )


def test_an_inner_limit_that_is_not_identified_is_named() -> None:
    axes, loss = two_tiers()
    noise = 0.05 * np.random.default_rng(1).standard_normal(len(loss))
    law = fit_tiers(axes, loss + noise, 0.05, num_bootstrap=200)
    assert not law.identified
    assert "at (" in law.reason
    record = json.loads(json.dumps(law.to_dict(), allow_nan=False))
    assert record["asymptote"] is None
    assert len(record["inner"][0]) == 4


def test_bad_chains_are_named() -> None:
    axes, loss = two_tiers()
    with pytest.raises(InputError, match="two axes"):
        fit_tiers(axes[:1], loss)
    with pytest.raises(InputError, match="two axes"):
        fit_tiers(axes, loss, exponents=[1.0])
    with pytest.raises(InputError, match="y has"):
        fit_tiers(axes, loss[:-1])
    with pytest.raises(InputError, match="3 distinct"):
        fit_tiers([axes[0], np.arange(16.0) + 1], loss)
    k, n = grid(MEMBERS[:3], SIZES)
    with pytest.raises(InputError, match="no residuals"):
        fit_tiers([k, n], 0.3 / k + 1 / n + 3, exponents=[None, None])


STANDARD = 1.27 / DATA**0.23 + 1.93


def test_data_efficiency_reproduces_the_published_multiplier() -> None:
    law = fit_power_law(DATA, STANDARD)
    found = data_efficiency(3.17, law, standard_loss=3.75)
    assert found.multiplier == pytest.approx(5.3, abs=0.05)
    assert data_efficiency(law.predict(0.6), law, data=0.2).multiplier == pytest.approx(3.0)
    assert data_efficiency(law.predict(0.6), law).multiplier == pytest.approx(0.6), "against one unit of data"


def test_data_efficiency_interval_holds_the_truth_and_grows_with_noise() -> None:
    hits = 0
    for i in range(20):
        rng = np.random.default_rng([2, i])
        law = fit_power_law(DATA, STANDARD + 0.003 * rng.standard_normal(4), 0.003, num_bootstrap=300)
        found = data_efficiency(3.17 + 0.005 * rng.standard_normal(), law, data=0.21, loss_sigma=0.005)
        truth = (1.27 / (3.17 - 1.93)) ** (1 / 0.23) / 0.21
        hits += found.interval[0] <= truth <= found.interval[1]
    assert hits >= 14
    narrow = data_efficiency(3.17, law, standard_loss=3.75).interval
    for sds in ({"loss_sigma": 0.05}, {"standard_sigma": 0.05}):
        wide = data_efficiency(3.17, law, standard_loss=3.75, **sds).interval
        assert wide[1] - wide[0] > 1.3 * (narrow[1] - narrow[0]), sds


def test_a_loss_below_the_standard_asymptote_has_no_multiplier() -> None:
    law = fit_power_law(DATA, STANDARD)
    never = data_efficiency(1.9, law)
    assert not never.identified
    assert never.to_dict()["multiplier"] is None
    noisy = fit_power_law(DATA, STANDARD + np.array([0.01, -0.01, 0.01, -0.005]), 0.01)
    doubtful = data_efficiency(noisy.asymptote + 0.05, noisy, largest_data=1.68)
    assert not doubtful.identified
    assert doubtful.extrapolated
    assert doubtful.interval[1] == math.inf
    json.dumps(doubtful.to_dict(), allow_nan=False)
    assert data_efficiency(1.95, noisy, standard_loss=1.0).multiplier == math.inf


@pytest.mark.parametrize("options", [{"data": 0.0}, {"standard_loss": math.nan}, {"loss_sigma": -1.0}, {"level": 1.0}])
def test_bad_input_is_named(options: dict) -> None:
    with pytest.raises(InputError):
        data_efficiency(3.0, fit_power_law(DATA, STANDARD), **options)
    with pytest.raises(InputError, match="loss"):
        data_efficiency(-3.0, fit_power_law(DATA, STANDARD))
