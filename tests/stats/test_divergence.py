"""Divergences, tails and their inverses against mpmath, with the side they round to."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core.errors import InputError
from forethought.stats.divergence import (
    bernoulli_kl,
    binomial_tail_inverse,
    clopper_pearson,
    kl_inverse_lower,
    kl_inverse_upper,
    log_binomial_tail,
)

mpmath.mp.dps = 60
EDGES = [0.0, 1e-300, 1e-17, 1e-9, 0.03, 0.3, 0.5, 0.7, 1 - 1e-9, math.nextafter(1.0, 0.0), 1.0]
BUDGETS = [0.0, 1e-300, 1e-20, 1e-9, 1e-4, 0.01, 0.3, 2.0, 40.0, 1e4]
probabilities = st.one_of(st.sampled_from(EDGES), st.floats(0, 1))
budgets = st.one_of(st.sampled_from(BUDGETS), st.floats(0, 5))


def exact_kl(q: float, p: float) -> mpmath.mpf:
    q_, p_ = mpmath.mpf(q), mpmath.mpf(p)
    if (p_ == 0 and q > 0) or (p_ == 1 and q < 1):
        return mpmath.inf
    first = q_ * mpmath.log(q_ / p_) if q > 0 else mpmath.mpf(0)
    second = (1 - q_) * (mpmath.log1p(-q_) - mpmath.log1p(-p_)) if q < 1 else mpmath.mpf(0)
    return first + second


def exact_inverse(q: float, budget: float, *, upper: bool) -> float:
    """Bisection at 60 digits."""
    inside, outside = mpmath.mpf(q), mpmath.mpf(1 if upper else 0)
    if exact_kl(q, outside) <= budget:
        return float(outside)
    for _ in range(60):
        middle = (inside + outside) / 2
        if exact_kl(q, middle) <= budget:
            inside = middle
        else:
            outside = middle
    return float(inside)


def exact_log_tail(errors: int, n: int, p: float) -> mpmath.mpf:
    p_ = mpmath.mpf(p)
    term = mpmath.binomial(n, errors) * p_**errors * (1 - p_) ** (n - errors)
    total = term
    for k in range(errors, 0, -1):
        term = term * k * (1 - p_) / ((n - k + 1) * p_)
        total += term
        if term < total * mpmath.mpf(10) ** -40 and k < n * p:
            break
    return mpmath.log(total)


@given(probabilities, probabilities)
@settings(deadline=None, max_examples=200)
def test_kl_equals_mpmath(q: float, p: float) -> None:
    expected = exact_kl(q, p)
    assert bernoulli_kl(q, p) >= 0
    if mpmath.isinf(expected):
        assert bernoulli_kl(q, p) == math.inf
    else:
        assert abs(bernoulli_kl(q, p) - expected) <= 1e-14 * (1 + abs(expected))


@given(probabilities, budgets)
@settings(deadline=None, max_examples=120)
def test_kl_inverses_equal_mpmath_and_round_outwards(q: float, budget: float) -> None:
    upper, lower = kl_inverse_upper(q, budget), kl_inverse_lower(q, budget)
    assert 0 <= lower <= q <= upper <= 1
    assert abs(upper - exact_inverse(q, budget, upper=True)) <= 1e-12
    assert abs(lower - exact_inverse(q, budget, upper=False)) <= 1e-12
    assert upper == 1 or exact_kl(q, upper) >= budget
    assert lower == 0 or exact_kl(q, lower) >= budget
    assert upper <= q + math.sqrt(budget / 2) + 1e-12, "Pinsker"


@pytest.mark.parametrize("q", EDGES)
@pytest.mark.parametrize("budget", BUDGETS)
def test_kl_inverses_at_the_edges(q: float, budget: float) -> None:
    upper, lower = kl_inverse_upper(q, budget), kl_inverse_lower(q, budget)
    assert abs(upper - exact_inverse(q, budget, upper=True)) <= 1e-12
    assert abs(lower - exact_inverse(q, budget, upper=False)) <= 1e-12
    assert upper == 1 or exact_kl(q, upper) >= budget
    assert lower == 0 or exact_kl(q, lower) >= budget


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 3), st.floats(0, 3))
@settings(deadline=None)
def test_kl_inverse_is_monotone_in_both_arguments(q1: float, q2: float, c1: float, c2: float) -> None:
    (q1, q2), (c1, c2) = sorted((q1, q2)), sorted((c1, c2))
    assert kl_inverse_upper(q1, c1) <= kl_inverse_upper(q2, c1) + 1e-13
    assert kl_inverse_upper(q1, c1) <= kl_inverse_upper(q1, c2)
    assert kl_inverse_lower(q1, c1) >= kl_inverse_lower(q1, c2)


def test_kl_inverse_closed_forms() -> None:
    assert kl_inverse_upper(0.0, 0.1) == pytest.approx(-math.expm1(-0.1), rel=1e-15)
    assert kl_inverse_upper(0.4, math.inf) == 1.0
    assert kl_inverse_lower(0.4, math.inf) == 0.0
    assert kl_inverse_lower(1.0, 0.1) == pytest.approx(math.exp(-0.1), rel=1e-15)
    # A deterministic compressed classifier: 35 % error, 1.28 M examples, 2.87 M bits (published with 96.5 %).
    assert 0.9 < kl_inverse_upper(0.35, 2_867_200 * math.log(2) / 1_281_167) < 0.966


@given(st.integers(1, 400), st.data())
@settings(deadline=None, max_examples=120)
def test_binomial_tail_equals_mpmath_from_above(n: int, data: st.DataObject) -> None:
    errors = data.draw(st.integers(0, n))
    p = data.draw(st.one_of(st.floats(1e-12, 1 - 1e-12), st.just(errors / n)).filter(lambda v: 0 < v < 1))
    expected = exact_log_tail(errors, n, p) if errors < n else mpmath.mpf(0)
    result = log_binomial_tail(errors, n, p)
    assert -1e-45 <= result - expected <= 1e-11 * (1 + abs(expected)), "never below, but for the oracle's 60 digits"


@pytest.mark.parametrize(
    ("errors", "n", "p"),
    [(600, 60_000, 0.13), (1, 60_000, 0.12), (29_000, 50_000, 0.9), (200, 1500, 0.97), (30_000, 60_000, 0.5),
     (30_000, 60_000, 0.499), (30_000, 60_000, 0.501), (59_999, 60_000, 0.9999), (17, 20, 0.2)],
)  # fmt: skip
def test_binomial_tail_far_down_and_in_the_middle(errors: int, n: int, p: float) -> None:
    expected = exact_log_tail(errors, n, p)
    result = log_binomial_tail(errors, n, p)
    assert 0 <= result - expected <= 1e-9


def test_binomial_tail_at_the_ends_of_its_range() -> None:
    assert log_binomial_tail(3, 3, 0.9) == 0
    assert log_binomial_tail(2, 3, 0.0) == 0
    assert log_binomial_tail(2, 3, 1.0) == -math.inf
    assert log_binomial_tail(0, 60_000, 0.2) == pytest.approx(60_000 * math.log(0.8), rel=1e-14)
    assert log_binomial_tail(500_000_000, 1_000_000_000, 0.5001) < -19


@pytest.mark.parametrize(
    ("errors", "n", "bits", "expected"),
    [(0, 60_000, 500, 0.0058), (600, 60_000, 4000, 0.0740), (3000, 60_000, 2000, 0.1109), (200, 1500, 120, 0.2712),
     (29_000, 50_000, 10_000, 0.8094)],
)  # fmt: skip
def test_occam_bounds_of_the_literature(errors: int, n: int, bits: int, expected: float) -> None:
    log_delta = math.log(0.05) - bits * math.log(2)
    bound = binomial_tail_inverse(errors, n, log_delta)
    assert bound == pytest.approx(expected, abs=6e-5)
    assert bound <= kl_inverse_upper(errors / n, -log_delta / n) + 1e-12
    assert exact_log_tail(errors, n, bound) <= log_delta, "rounded up: the tail at the bound is at most delta"
    assert exact_log_tail(errors, n, bound * (1 - 1e-9)) > log_delta, "and no looser than that"


@given(st.integers(1, 300), st.data())
@settings(deadline=None, max_examples=100)
def test_binomial_inverse_is_safe_tight_and_symmetric(n: int, data: st.DataObject) -> None:
    errors = data.draw(st.integers(0, n))
    log_delta = data.draw(st.floats(-3000, -1e-6))
    bound = binomial_tail_inverse(errors, n, log_delta)
    assert bound >= 0
    if errors < n and bound < 1 - 1e-12:
        assert exact_log_tail(errors, n, bound) <= log_delta
        assert exact_log_tail(errors, n, max(bound - 1e-11, 1e-300)) >= log_delta - 1e-7 * abs(log_delta)


def test_binomial_inverse_limits() -> None:
    assert binomial_tail_inverse(5, 5, -3.0) == 1.0
    assert binomial_tail_inverse(2, 5, 0.0) == 0.0
    assert binomial_tail_inverse(2, 5, -math.inf) == 1.0
    assert binomial_tail_inverse(0, 100, -10_000 * math.log(2)) == 1.0


def test_clopper_pearson_equals_the_beta_quantiles() -> None:
    from scipy.stats import beta

    for successes, n in [(1, 20), (7, 20), (19, 20), (500, 10_000)]:
        low, high = clopper_pearson(successes, n)
        assert low == pytest.approx(beta.ppf(0.025, successes, n - successes + 1), rel=1e-9)
        assert high == pytest.approx(beta.ppf(0.975, successes + 1, n - successes), rel=1e-9)
    assert clopper_pearson(0, 10)[0] == 0.0
    assert clopper_pearson(10, 10)[1] == 1.0


def test_clopper_pearson_covers() -> None:
    draws = np.random.default_rng(3).binomial(50, 0.1, size=2000)
    ends = {int(k): clopper_pearson(int(k), 50) for k in np.unique(draws)}
    misses = sum(not ends[int(k)][0] <= 0.1 <= ends[int(k)][1] for k in draws)
    assert misses / 2000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bernoulli_kl(-0.1, 0.5),
        lambda: bernoulli_kl(0.1, math.nan),
        lambda: kl_inverse_upper(1.1, 0.5),
        lambda: kl_inverse_upper(0.1, -1e-9),
        lambda: kl_inverse_lower(0.1, math.nan),
        lambda: log_binomial_tail(4, 3, 0.5),
        lambda: log_binomial_tail(0, 0, 0.5),
        lambda: binomial_tail_inverse(1, 3, 0.1),
        lambda: binomial_tail_inverse(1, 3, math.nan),
        lambda: clopper_pearson(1, 3, 1.0),
    ],
)
def test_bad_input_is_named(call: object) -> None:
    with pytest.raises(InputError, match=r"give|must be"):
        call()  # type: ignore[operator]
