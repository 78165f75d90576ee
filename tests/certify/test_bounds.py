"""Every inversion against mpmath to 1e-12, from the safe side, with the inputs it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.certify import bit_budget, catoni, kl_inverse, occam_binomial
from forethought.certify.bounds import (
    FREEDMAN_GRID,
    azuma,
    betting,
    catoni_fixed,
    empirical_bernstein,
    freedman,
    freedman_closed,
    freedman_printed,
    hoeffding,
    maurer_seeger,
    mcallester,
    mcallester_published,
    monte_carlo,
    monte_carlo_pac_bayes,
    occam_kl,
    pac_bayes_lambda,
    pac_bayes_quadratic,
    smoothing_range,
    subsampled_hoeffding,
    subsampled_kl,
    subsampled_zero_one,
    token_price,
    tolstikhin_seldin,
)
from forethought.certify.bounds.bounded import STAKES
from forethought.core.errors import InputError

mpmath.mp.dps = 50
LN2 = mpmath.log(2)
TOLERANCE = 1e-12


def price(bits: float, delta: float) -> mpmath.mpf:
    return mpmath.mpf(bits) * LN2 - mpmath.log(mpmath.mpf(delta))


def exact_kl(q: mpmath.mpf, p: mpmath.mpf) -> mpmath.mpf:
    first = q * mpmath.log(q / p) if q > 0 else mpmath.mpf(0)
    return first + ((1 - q) * mpmath.log((1 - q) / (1 - p)) if q < 1 else 0)


def exact_log_tail(errors: int, n: int, p: mpmath.mpf) -> mpmath.mpf:
    """log Pr[Bin(n, p) <= errors] by its terms at 50 digits, from the largest down."""
    log_term = mpmath.loggamma(n + 1) - mpmath.loggamma(errors + 1) - mpmath.loggamma(n - errors + 1)
    log_term += errors * mpmath.log(p) + (n - errors) * mpmath.log1p(-p)
    total = ratio = mpmath.mpf(1)
    for k in range(errors, 0, -1):
        ratio *= k * (1 - p) / ((n - k + 1) * p)
        total += ratio
        if ratio < total * mpmath.mpf(10) ** -35 and k < n * p:
            break
    return log_term + mpmath.log(total)


def is_last_float_above(bound: float, reached: Callable[[mpmath.mpf], bool]) -> None:
    """The bound is on the safe side of the crossing of a monotone condition, and within 1e-12 of it."""
    assert bound == 1.0 or reached(mpmath.mpf(bound)), "safe: the condition holds at the bound"
    assert not reached(mpmath.mpf(bound) - mpmath.mpf(TOLERANCE)), "tight: it does not hold 1e-12 below"


@pytest.mark.parametrize(
    ("errors", "n", "bits"),
    [(0, 60_000, 10_000), (1, 60_000, 10_000), (600, 60_000, 10_000), (2_568, 60_000, 3_217), (200, 1_500, 120),
     (29_000, 50_000, 10_000), (3, 20, 0), (19, 20, 0), (59_990, 60_000, 40), (1, 2, 0.5), (6_000, 60_000, 100_000)],
)  # fmt: skip
@pytest.mark.parametrize("delta", [0.05, 1e-9])
def test_binomial_inversion_equals_mpmath_down_to_two_to_the_minus_ten_thousand(
    errors: int, n: int, bits: float, delta: float
) -> None:
    target = -price(bits, delta)
    is_last_float_above(occam_binomial(errors, n, bits, delta), lambda p: exact_log_tail(errors, n, p) <= target)


@given(st.integers(1, 300), st.data())
@settings(deadline=None, max_examples=60)
def test_binomial_inversion_equals_mpmath_everywhere(n: int, data: st.DataObject) -> None:
    errors = data.draw(st.integers(0, n - 1))
    bits = data.draw(st.one_of(st.just(0.0), st.floats(0, 12_000)))
    delta = data.draw(st.floats(1e-12, 0.999))
    bound = occam_binomial(errors, n, bits, delta)
    if bound < 1 - 1e-12:
        target = -price(bits, delta)
        is_last_float_above(bound, lambda p: exact_log_tail(errors, n, p) <= target)
    assert bound <= occam_kl(errors / n, n, bits, delta) + 1e-15
    assert bound <= occam_binomial(errors + 1, n, bits, delta) + 1e-15
    assert bound <= occam_binomial(errors, n, bits + 1.0, delta)
    assert bound <= occam_binomial(errors, n, bits, delta / 2)


@given(st.floats(0, 0.999), st.integers(1, 10**7), st.floats(0, 20_000), st.floats(1e-12, 0.999))
@settings(deadline=None, max_examples=100)
def test_kl_forms_equal_mpmath(risk: float, n: int, bits: float, delta: float) -> None:
    for bound, budget in (
        (occam_kl(risk, n, bits, delta), price(bits, delta) / n),
        (maurer_seeger(risk, n, bits, delta), (price(bits, delta) + mpmath.log(2 * mpmath.sqrt(n))) / n),
        (kl_inverse(risk, bits / n), mpmath.mpf(bits / n)),
    ):
        if risk + 1e-12 < bound < 1 - 1e-12:
            q, cost = mpmath.mpf(risk), budget
            is_last_float_above(bound, lambda p, q=q, cost=cost: exact_kl(q, p) >= cost)
        assert risk <= bound <= 1


@given(st.floats(0, 1), st.integers(2, 10**7), st.floats(0, 20_000), st.floats(1e-12, 0.999))
@settings(deadline=None, max_examples=100)
def test_closed_forms_equal_mpmath_from_above(risk: float, n: int, bits: float, delta: float) -> None:
    r, cost = mpmath.mpf(risk), price(bits, delta)
    kl_cost = cost + mpmath.log(2 * mpmath.sqrt(n))
    e = kl_cost / n
    weight = 2 / (1 + mpmath.sqrt(2 * r / e + 1))
    pairs = [
        (hoeffding(risk, n, bits, delta), r + mpmath.sqrt(cost / (2 * n))),
        (azuma(risk, n, bits, delta, width=2.5), r + mpmath.mpf(2.5) * mpmath.sqrt(cost / (2 * n))),
        (mcallester(risk, n, bits, delta), r + mpmath.sqrt(e / 2)),
        (mcallester_published(risk, n, bits, delta), r + mpmath.sqrt((cost + mpmath.log(n)) / (2 * n - 1))),
        (pac_bayes_quadratic(risk, n, bits, delta), (mpmath.sqrt(r + e / 2) + mpmath.sqrt(e / 2)) ** 2),
        (tolstikhin_seldin(risk, n, bits, delta), r + mpmath.sqrt(2 * r * e) + 2 * e),
        (pac_bayes_lambda(risk, n, bits, delta), r / (1 - weight / 2) + e / (weight * (1 - weight / 2))),
    ]
    for found, expected in pairs:
        # At its best weight Thiemann's form is flat, so a rounded weight moves it by less than a unit.
        assert -1e-15 * abs(expected) <= found - expected <= TOLERANCE * max(1, expected)


@given(st.floats(0, 1), st.integers(2, 10**6), st.floats(0, 20_000), st.floats(1e-9, 0.5))
@settings(deadline=None, max_examples=25)
def test_catoni_equals_mpmath_at_the_best_temperature(risk: float, n: int, bits: float, delta: float) -> None:
    ratio, cost = mpmath.mpf(1e-4), price(bits, delta)

    def value(log_temperature: mpmath.mpf) -> mpmath.mpf:
        paid = (1 + ratio) * (cost + 2 * mpmath.log(2 + log_temperature / mpmath.log1p(ratio)))
        scale = mpmath.exp(log_temperature) / n
        return mpmath.expm1(-(scale * mpmath.mpf(risk) + paid / n)) / mpmath.expm1(-scale)

    low, high = mpmath.mpf(0), mpmath.log(n) + 8
    for _ in range(110):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if value(left) <= value(right) else (left, high)
    best = value((low + high) / 2)
    assert 0 <= catoni(risk, n, bits, delta) - best <= TOLERANCE * max(1, best)
    temperature = 0.3 * n
    paid = -mpmath.expm1(-(mpmath.mpf(temperature) / n * risk + cost / n)) / -mpmath.expm1(-mpmath.mpf(temperature) / n)
    assert 0 <= catoni_fixed(risk, n, bits, delta, temperature) - paid <= TOLERANCE * max(1, paid)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.floats(0, 60), st.floats(1e-6, 0.5))
@settings(deadline=None, max_examples=40)
def test_betting_and_bernstein_equal_mpmath(losses: list[float], bits: float, delta: float) -> None:
    array, cost, n = np.array(losses), price(bits, delta), len(losses)

    def refuted(mean: mpmath.mpf) -> bool:
        stakes = [mpmath.mpf(float(c)) / (1 - mean) for c in STAKES]
        wealths = [mpmath.fprod(1 + stake * (mean - mpmath.mpf(x)) for x in losses) for stake in stakes]
        return mpmath.log(mpmath.fsum(wealths) / len(stakes)) >= cost

    bound = betting(array, bits, delta)
    assert math.fsum(losses) / n - 1e-15 <= bound <= 1
    if bound < 1 - 1e-9:
        is_last_float_above(bound, refuted)
    mean = mpmath.fsum(map(mpmath.mpf, losses)) / n
    variance = mpmath.fsum((mpmath.mpf(x) - mean) ** 2 for x in losses) / (n - 1)
    cost2 = cost + LN2
    expected = mean + mpmath.sqrt(2 * variance * cost2 / n) + 7 * cost2 / (3 * (n - 1))
    # The spread is a root of the variance: rounding of the mean is felt where all losses are (almost) equal.
    assert -1e-15 <= empirical_bernstein(array, bits, delta) - expected <= 1e-12 * max(1, expected) + 1e-11 * cost2


@given(st.lists(st.tuples(st.floats(0, 6), st.floats(0, 4)), min_size=1, max_size=12), st.floats(0, 60))
@settings(deadline=None, max_examples=25)
def test_freedman_equals_mpmath_at_its_best_point_of_the_grid(pairs: list[tuple[float, float]], bits: float) -> None:
    losses, guesses = (np.array(column) for column in zip(*pairs, strict=True))
    n, width = len(losses), mpmath.mpf(6)
    c = (price(bits, 0.05) + mpmath.log(len(FREEDMAN_GRID))) / n
    gains = [mpmath.mpf(g) - mpmath.mpf(x) for x, g in pairs]
    found = freedman(losses, guesses, bits, 0.05, loss_range=6.0)

    def at(s: float) -> mpmath.mpf:
        step = mpmath.mpf(s) / width
        return width * c / s + mpmath.fsum(step * a - mpmath.log1p(step * a) for a in gains) / n / step

    # The exact form is quasi-convex in s: its grid minimum is next to where floats have it.
    rough = [float(width * c) / s + float(np.mean(x - np.log1p(x))) * 6.0 / s
             for s in FREEDMAN_GRID for x in [s / 6.0 * (guesses - losses)]]  # fmt: skip
    near = sorted(range(len(rough)), key=rough.__getitem__)[:5]
    best = min(at(FREEDMAN_GRID[i]) for i in near) + mpmath.fsum(map(mpmath.mpf, losses)) / n
    assert 0 <= found - best <= TOLERANCE * max(1, best)
    square = float(np.mean((guesses - losses) ** 2))
    assert found <= freedman_closed(float(losses.mean()), square, n, bits, 0.05, loss_range=6.0) + 1e-9
    exact_square = mpmath.mpf(square)
    closed = min(width * c * (1 - mpmath.mpf(s)) / s + mpmath.mpf(s) / (1 - mpmath.mpf(s)) * exact_square / (2 * width)
                 for s in FREEDMAN_GRID[::1]) + width * c + mpmath.mpf(float(losses.mean()))  # fmt: skip
    found = freedman_closed(float(losses.mean()), square, n, bits, 0.05, loss_range=6.0)
    assert 0 <= found - closed <= TOLERANCE * max(1, closed)


def test_subsampled_and_sampled_forms_are_the_inversions_they_are_made_of() -> None:
    m, n, bits, delta, share = 1_000, 50_000, 300.0, 0.05, 0.3
    sampled = kl_inverse(0.1, float(-mpmath.log(0.7 * mpmath.mpf(delta)) / m))
    expected = occam_kl(sampled, n, bits, share * delta)
    assert subsampled_kl(0.1, m, n, bits, delta, share=share) == pytest.approx(expected, abs=1e-14)
    upper = occam_binomial(100, m, 0, 0.7 * delta)
    expected = occam_binomial(math.floor(upper * n), n, bits, share * delta)
    assert subsampled_zero_one(100, m, n, bits, delta, share=share) == pytest.approx(expected, abs=1e-14)
    assert subsampled_zero_one(100, m, n, bits, delta) < subsampled_kl(0.1, m, n, bits, delta)
    assert subsampled_kl(0.1, m, n, bits, delta) < subsampled_hoeffding(0.1, m, n, bits, delta)
    inner = monte_carlo(0.03, 2_000, 0.01)
    is_last_float_above(inner, lambda p: exact_kl(mpmath.mpf(0.03), p) >= mpmath.log(2 / mpmath.mpf(0.01)) / 2_000)
    expected = maurer_seeger(inner, 5_000, 80, 0.04)
    assert monte_carlo_pac_bayes(0.03, 2_000, 5_000, 80, 0.05) == pytest.approx(expected, abs=1e-14)


def test_the_planner_inverts_the_bound() -> None:
    for n, risk, target in [(60_000, 0.04, 0.116), (1_400, 0.1, 0.3), (100, 0.0, 0.5)]:
        bits = bit_budget(n, risk, target)
        assert occam_kl(risk, n, bits, 0.05) <= target * (1 + 1e-12)
        assert occam_kl(risk, n, bits * (1 + 1e-9) + 1e-6, 0.05) > target


def test_results_are_never_clipped_where_a_reader_must_see_that_they_are_vacuous() -> None:
    assert hoeffding(0.9, 10, 1_000, 0.05) > 1
    assert mcallester(0.9, 10, 1_000, 0.05) > 1
    assert empirical_bernstein(np.array([0.1, 0.9]), 1_000, 0.05) > 1


BAD: list[Callable[[], object]] = [
    lambda: occam_binomial(4, 3, 1, 0.05),
    lambda: occam_binomial(-1, 3, 1, 0.05),
    lambda: occam_binomial(0, 0, 1, 0.05),
    lambda: occam_binomial(1.0, 3, 1, 0.05),  # type: ignore[arg-type]
    lambda: occam_binomial(1, 3.5, 1, 0.05),  # type: ignore[arg-type]
    lambda: occam_binomial(1, 3, -1e-9, 0.05),
    lambda: occam_binomial(1, 3, math.nan, 0.05),
    lambda: occam_binomial(1, 3, math.inf, 0.05),
    lambda: occam_binomial(1, 3, 1, 0.0),
    lambda: occam_binomial(1, 3, 1, 1.0),
    lambda: occam_binomial(1, 3, 1, math.nan),
    lambda: catoni(1.1, 3, 1, 0.05),
    lambda: catoni(math.nan, 3, 1, 0.05),
    lambda: catoni(0.1, 3, 1, 0.05, ratio=0.0),
    lambda: catoni_fixed(0.1, 3, 1, 0.05, math.inf),
    lambda: kl_inverse(0.1, math.nan),
    lambda: kl_inverse(-0.1, 1.0),
    lambda: occam_kl(2.0, 3, 1, 0.05),
    lambda: hoeffding(math.nan, 3, 1, 0.05),
    lambda: hoeffding(0.1, 3, 1, 0.05, width=0.0),
    lambda: pac_bayes_lambda(0.1, 3, 1, 0.05, 2.0),
    lambda: monte_carlo(0.1, 0, 0.05),
    lambda: monte_carlo_pac_bayes(0.1, 10, 10, 1, 0.05, share=1.0),
    lambda: bit_budget(10, 0.1, 1.2),
    lambda: betting(np.array([0.1, 1.5]), 1, 0.05),
    lambda: betting(np.array([0.1, math.nan]), 1, 0.05),
    lambda: betting(np.array([]), 1, 0.05),
    lambda: empirical_bernstein(np.array([0.1]), 1, 0.05),
    lambda: freedman(np.array([0.1, 7.0]), np.array([1.0, 1.0]), 1, 0.05, loss_range=6.0),
    lambda: freedman(np.array([0.1, 1.0]), np.array([1.0, math.inf]), 1, 0.05, loss_range=6.0),
    lambda: freedman(np.array([0.1]), np.array([1.0, 1.0]), 1, 0.05, loss_range=6.0),
    lambda: freedman(np.array([0.1]), np.array([1.0]), 1, 0.05, loss_range=math.inf),
    lambda: freedman_closed(0.1, -1.0, 10, 1, 0.05, loss_range=6.0),
    lambda: freedman_printed(0.1, 1.0, 10, 1, 0.05, vocab_size=1),
    lambda: smoothing_range(65, 1.0),
    lambda: token_price(0, 1, 0.05),
    lambda: azuma(math.inf, 10, 1, 0.05, width=1.0),
    lambda: subsampled_kl(0.1, 0, 10, 1, 0.05),
    lambda: subsampled_hoeffding(0.1, 10, 10, 1, 0.05, share=0.0),
    lambda: subsampled_zero_one(11, 10, 10, 1, 0.05),
]


@pytest.mark.parametrize("call", BAD)
def test_bad_numbers_are_refused_by_name(call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=r"give|must be|finite|not below|too small|outside"):
        call()


@pytest.mark.parametrize("steps", [80])
def test_an_inversion_of_eighty_steps_converges_at_sixty_thousand(steps: int) -> None:
    """The bisection to neighbouring floats takes no more than eighty looks at the tail."""
    from forethought.stats import divergence

    looks = 0
    plain = divergence.log_binomial_tail

    def counted(errors: int, n: int, p: float) -> float:
        nonlocal looks
        looks += 1
        return plain(errors, n, p)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divergence, "log_binomial_tail", counted)
        occam_binomial(2_568, 60_000, 3_217, 0.05)
    assert 30 <= looks <= steps
