"""Intervals, corrections and tests of counts against closed forms and simulations."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import forethought.stats
from forethought.core.errors import InputError
from forethought.stats import (
    g_test,
    g_test_two_samples,
    holm,
    mean_interval,
    median_interval,
    paired_ratio,
    wilson,
)


def test_mean_interval_equals_the_textbook() -> None:
    found = mean_interval([1, 2, 3, 4, 5])
    assert found.estimate == 3
    assert found.high - 3 == pytest.approx(2.7764451 * math.sqrt(2.5 / 5))
    assert 3 in found
    assert 6 not in found
    assert mean_interval([2.0]).high == math.inf


def test_mean_interval_covers() -> None:
    draws = np.random.default_rng(0).normal(1.0, 2.0, size=(1500, 4))
    hits = sum(1.0 in mean_interval(row, 0.9) for row in draws)
    assert abs(hits / 1500 - 0.9) < 4 * math.sqrt(0.09 / 1500)


@pytest.mark.parametrize(("n", "low", "high"), [(6, 0, 5), (8, 0, 7), (9, 1, 7), (20, 5, 14)])
def test_median_interval_takes_the_order_statistics_of_the_tables(n: int, low: int, high: int) -> None:
    found = median_interval(np.random.default_rng(0).permutation(np.arange(float(n))))
    assert (found.low, found.high) == (low, high)
    assert found.estimate == (n - 1) / 2
    exact = 1 - 2 * sum(math.comb(n, k) for k in range(low + 1)) / 2**n
    assert found.level == pytest.approx(exact)
    assert found.level >= 0.95


def test_median_interval_of_too_few_says_what_it_is_worth() -> None:
    assert median_interval([3.0]).level == 0.0
    assert median_interval([3.0, 1.0, 2.0]).level == 0.75
    assert (median_interval([3.0, 1.0, 2.0]).low, median_interval([3.0, 1.0, 2.0]).high) == (1, 3)


def test_median_interval_covers() -> None:
    draws = np.random.default_rng(1).exponential(size=(1500, 15))
    hits = sum(math.log(2) in median_interval(row) for row in draws)
    assert hits / 1500 > 0.95 - 4 * math.sqrt(0.05 / 1500)


def test_paired_ratio_pairs() -> None:
    drift = np.geomspace(1, 10, 9)
    found = paired_ratio(2 * drift, drift)
    assert (found.estimate, found.low, found.high) == (2, 2, 2)
    with pytest.raises(InputError, match="pairs"):
        paired_ratio([1, 2], [1])
    with pytest.raises(InputError, match="denominator"):
        paired_ratio([1.0], [0.0])


def test_wilson_equals_the_textbook() -> None:
    found = wilson(8, 10)
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178))
    assert wilson(0, 10).low == 0
    assert wilson(10, 10).high == 1
    with pytest.raises(InputError):
        wilson(3, 2)


@given(st.lists(st.floats(0, 1), max_size=12))
@settings(deadline=None)
def test_holm_is_the_step_down_rule(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for alpha in (0.01, 0.05, 0.3):
        order = np.argsort(p_values, kind="stable")
        rejected: set[int] = set()
        for step, index in enumerate(order):
            if p_values[index] * (len(p_values) - step) > alpha:
                break
            rejected.add(int(index))
        assert rejected == {i for i, p in enumerate(adjusted) if p <= alpha}


def test_holm_refuses_what_is_no_probability() -> None:
    with pytest.raises(InputError):
        holm([0.1, 1.2])


def test_g_test_is_the_likelihood_ratio() -> None:
    found = g_test([30, 50, 20], [0.25, 0.5, 0.25])
    expected = 2 * (30 * math.log(30 / 25) + 20 * math.log(20 / 25))
    assert found.statistic == pytest.approx(expected)
    assert found.degrees_of_freedom == 2
    assert found.p_value == pytest.approx(math.exp(-expected / 2))


def test_g_tests_have_their_size_and_power() -> None:
    rng = np.random.default_rng(5)
    law = rng.dirichlet(np.ones(20))
    other = 0.8 * law + 0.2 / 20
    null = [g_test(rng.multinomial(3000, law), law).p_value for _ in range(400)]
    both = [g_test_two_samples(rng.multinomial(3000, law), rng.multinomial(2000, law)).p_value for _ in range(400)]
    for p_values in (null, both):
        share = float(np.mean(np.array(p_values) < 0.05))
        assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 400)
    assert g_test(rng.multinomial(3000, other), law).p_value < 1e-6
    assert g_test_two_samples(rng.multinomial(3000, other), rng.multinomial(3000, law)).p_value < 1e-4


def test_sparse_cells_are_pooled_and_impossible_ones_condemn() -> None:
    law = np.array([0.9, 0.04, 0.03, 0.03, 0.0])
    assert g_test([90, 4, 3, 3, 0], law).degrees_of_freedom == 1
    assert g_test([900, 40, 30, 30, 0], law).degrees_of_freedom == 3
    assert g_test([900, 40, 30, 29, 1], law).p_value == 0
    assert g_test([3], [1.0]).p_value == 1
    assert g_test([1, 1], [0.5, 0.5]).degrees_of_freedom == 0, "everything fell into one pool"
    assert g_test_two_samples([5, 5, 0], [5, 5, 0]).p_value == 1
    pooled = g_test([100, 100, 1], [0.49, 0.49, 0.02])
    assert pooled.degrees_of_freedom == 1, "a pool that stays sparse takes in the next cell"


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_interval([]),
        lambda: mean_interval([1, math.nan]),
        lambda: mean_interval([1, 2], level=1.5),
        lambda: wilson(1, 2, level=0),
        lambda: g_test([1, 2], [0.5, 0.6]),
        lambda: g_test([1, 2], [1.0]),
        lambda: g_test([0, 0], [0.5, 0.5]),
        lambda: g_test([-1, 2], [0.5, 0.5]),
        lambda: g_test_two_samples([1, 2], [1, 2, 3]),
    ],
)
def test_bad_input_is_named(call: object) -> None:
    with pytest.raises(InputError):
        call()  # type: ignore[operator]


def test_the_room_is_light_sorted_and_complete() -> None:
    assert forethought.stats.__all__ == sorted(forethought.stats.__all__)
    for name in forethought.stats.__all__:
        assert getattr(forethought.stats, name).__name__ == name
    assert set(forethought.stats.__all__) <= set(dir(forethought.stats))
    with pytest.raises(AttributeError, match="nothing"):
        _ = forethought.stats.nothing
    script = (
        "import sys, forethought.stats as s; assert 'scipy' not in sys.modules and 'numpy' not in sys.modules;"
        "[getattr(s, n) for n in s.__all__]; sys.exit('torch' in sys.modules or 'scipy.stats' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
