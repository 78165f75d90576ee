"""What a bound promises, counted: 20,000 samples a bound, and choices that were not paid for.

Hypotheses are selected after the sample is seen, as training does, so that the union over the prior is at work.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from forethought.certify.bounds import (
    azuma,
    betting,
    catoni,
    catoni_fixed,
    empirical_bernstein,
    freedman,
    freedman_closed,
    freedman_from,
    freedman_printed,
    hoeffding,
    maurer_seeger,
    mcallester,
    mcallester_published,
    monte_carlo_pac_bayes,
    occam_binomial,
    occam_kl,
    pac_bayes_lambda,
    pac_bayes_quadratic,
    subsampled_hoeffding,
    subsampled_kl,
    subsampled_zero_one,
    token_price,
    tolstikhin_seldin,
)
from forethought.core.rng import generator
from forethought.stats.divergence import binomial_tail_inverse

TRIALS = 20_000
DELTAS = [0.05, 0.01]


def each(function: Callable[..., float], rows: np.ndarray) -> np.ndarray:
    """The function of every row, evaluated once for each different one."""
    table, places = np.unique(rows, axis=0, return_inverse=True)
    return np.array([function(*row) for row in table.tolist()])[places.ravel()]


def surely_at_most(violations: int, delta: float, trials: int = TRIALS) -> bool:
    """Whether the rate is at most delta with 99 % confidence: its one-sided Clopper-Pearson limit is."""
    return binomial_tail_inverse(violations, trials, math.log(0.01)) <= delta


OCCAM: dict[str, Callable[[int, int, float, float], float]] = {
    "binomial": occam_binomial,
    "chernoff_kl": lambda k, n, bits, delta: occam_kl(k / n, n, bits, delta),
    "hoeffding": lambda k, n, bits, delta: hoeffding(k / n, n, bits, delta),
}
PAC_BAYES: dict[str, Callable[[float, int, float, float], float]] = {
    "maurer": maurer_seeger,
    "mcallester": mcallester,
    "mcallester_published": mcallester_published,
    "catoni": catoni,
    "catoni_fixed": lambda r, n, bits, delta: catoni_fixed(r, n, bits, delta, 1.2 * n),
    "lambda": pac_bayes_lambda,
    "quadratic": pac_bayes_quadratic,
    "tolstikhin": tolstikhin_seldin,
}


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("name", OCCAM)
def test_the_best_of_sixteen_hypotheses_is_covered(name: str, delta: float) -> None:
    n, risk = 520, 0.1  # where the exact form misses two thirds of what it may: counts are whole numbers
    errors = generator(1, "coverage.occam").binomial(n, risk, size=(TRIALS, 16)).min(axis=1)
    bounds = each(lambda k: OCCAM[name](k, n, 4.0, delta), errors[:, None])
    violations = int((bounds < risk).sum())
    assert surely_at_most(violations, delta)
    if name == "binomial":
        assert violations > 0.5 * delta * TRIALS, "the exact form is tight: half of what it may miss, it misses"


@pytest.mark.parametrize("delta", DELTAS)
def test_the_exact_form_misses_almost_what_it_may_and_never_more(delta: float) -> None:
    """No simulation: Pr[bound < R] is a binomial tail at the last count whose bound is below R."""
    ratios = []
    for n in range(300, 900, 40):
        counts = range(n)
        last = next(k for k in counts if occam_binomial(k, n, 4.0, delta) >= 0.1) - 1
        one = float(binom.cdf(last, n, 0.1))
        ratios.append(-math.expm1(16 * math.log1p(-one)) / delta)
    assert max(ratios) <= 1.0
    assert max(ratios) > 0.9


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("name", PAC_BAYES)
def test_a_posterior_on_the_best_four_of_sixteen_is_covered(name: str, delta: float) -> None:
    n, risks = 150, np.linspace(0.15, 0.45, 16)
    errors = generator(2, "coverage.posterior").binomial(n, risks, size=(TRIALS, 16))
    best = np.argsort(errors, axis=1, kind="stable")[:, :4]
    empirical = np.take_along_axis(errors, best, axis=1).sum(axis=1)
    bounds = each(lambda k: PAC_BAYES[name](k / (4 * n), n, 2.0, delta), empirical[:, None])
    assert surely_at_most(int((bounds < risks[best].mean(axis=1)).sum()), delta)


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("name", [*OCCAM, *PAC_BAYES])
def test_a_seed_chosen_from_4096_is_covered_when_it_is_paid_for(name: str, delta: float) -> None:
    bounds = chosen_seed_bounds(name, 12.0, delta)
    assert surely_at_most(int((bounds < 0.5).sum()), delta)


@pytest.mark.parametrize("name", [*OCCAM, "maurer", "mcallester"])
def test_a_seed_chosen_from_4096_violates_when_it_is_not_paid_for(name: str) -> None:
    bounds = chosen_seed_bounds(name, 0.0, 0.05)
    rate = float((bounds < 0.5).mean())
    assert rate > 0.25, "five times what delta allows, at the least"
    if name == "binomial":
        assert rate > 0.99
        assert float(bounds.mean()) == pytest.approx(0.433, abs=0.01), "a confident, wrong figure is printed"


def chosen_seed_bounds(name: str, bits: float, delta: float) -> np.ndarray:
    """Bounds of the best of 4096 coin-flipping seeds, true risk 1/2, on 200 examples."""
    n, num_seeds = 200, 4096
    # The smallest of N draws is the quantile at 1 - (1 - U)^(1 / N) of one.
    uniforms = generator(3, "coverage.seeds").random(TRIALS)
    levels = -np.expm1(np.log1p(-uniforms) / num_seeds)
    table = np.cumsum([math.comb(n, k) * 0.5**n for k in range(n + 1)])
    smallest = np.searchsorted(table, levels)
    if name in OCCAM:
        return each(lambda k: OCCAM[name](k, n, bits, delta), smallest[:, None])
    return each(lambda k: PAC_BAYES[name](k / n, n, bits, delta), smallest[:, None])


def three_valued(num_trials: int) -> tuple[np.ndarray, float]:
    """Counts [trials, 3] of losses 0, 1/2 and 1 on 40 examples of the best of eight, and their risk."""
    law = np.array([0.55, 0.3, 0.15])
    counts = generator(4, "coverage.bounded").multinomial(40, law, size=(num_trials, 8))
    best = np.argmin(counts @ [0.0, 0.5, 1.0], axis=1)
    return counts[np.arange(num_trials), best], float(law @ [0.0, 0.5, 1.0])


def spread(counts: tuple[int, ...]) -> np.ndarray:
    return np.repeat([0.0, 0.5, 1.0], counts)


BOUNDED: dict[str, Callable[[np.ndarray, float, float], float]] = {
    "betting": betting,
    "bernstein": empirical_bernstein,
    "chernoff_kl": lambda losses, bits, delta: occam_kl(float(losses.mean()), len(losses), bits, delta),
    "hoeffding": lambda losses, bits, delta: hoeffding(float(losses.mean()), len(losses), bits, delta),
}


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("name", BOUNDED)
def test_real_valued_losses_are_covered(name: str, delta: float) -> None:
    counts, risk = three_valued(TRIALS)
    bounds = each(lambda *row: BOUNDED[name](spread(row), 3.0, delta), counts)
    assert surely_at_most(int((bounds < risk).sum()), delta)


def test_betting_violates_when_it_stakes_more_confidence_than_it_has() -> None:
    counts, risk = three_valued(4_000)
    bounds = each(lambda *row: betting(spread(row), 0.0, 0.5), counts)
    assert float((bounds < risk).mean()) > 0.15


def markov_tokens(num_trials: int, num_tokens: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Transition counts [trials, 4] of losses 0.1 and 2 whose law depends on the loss before, and the mean of m_k."""
    chance = np.array([0.2, 0.6])
    draws = generator(5, "coverage.tokens").random((num_tokens, num_trials))
    state = np.zeros(num_trials, dtype=np.int64)
    counts, total = np.zeros((num_trials, 4), dtype=np.int64), np.zeros(num_trials)
    for row in draws:
        total += 0.1 + 1.9 * chance[state]
        after = (row < chance[state]).astype(np.int64)
        counts[np.arange(num_trials), 2 * state + after] += 1
        state = after
    return counts, total / num_tokens


def token_bound(name: str, counts: tuple[int, ...], delta: float) -> float:
    losses = np.repeat([0.1, 2.0, 0.1, 2.0], counts)
    guesses = np.repeat([0.48, 0.48, 1.24, 1.24], counts)
    if name == "azuma":
        return azuma(float(losses.mean()), len(losses), 0.0, delta, width=1.9)
    if name == "freedman_closed":
        square = float(np.mean((guesses - losses) ** 2))
        return freedman_closed(float(losses.mean()), square, len(losses), 0.0, delta, loss_range=2.0)
    return freedman(losses, guesses, 0.0, delta, loss_range=2.0)


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("name", ["freedman", "freedman_closed", "azuma"])
def test_tokens_that_depend_on_their_past_are_covered(name: str, delta: float) -> None:
    counts, truth = markov_tokens(TRIALS)
    bounds = each(lambda *row: token_bound(name, row, delta), counts)
    assert surely_at_most(int((bounds < truth).sum()), delta)


def test_token_bounds_without_their_price_violate() -> None:
    counts, truth = markov_tokens(4_000)

    def free(*row: int) -> float:
        losses, guesses = np.repeat([0.1, 2.0] * 2, row), np.repeat([0.48, 0.48, 1.24, 1.24], row)
        gains = (guesses - losses) / 2.0

        def mean_v(step: float) -> float:
            return float(np.mean(step * gains - np.log1p(step * gains)))

        return freedman_from(mean_v, float(losses.mean()), 1e-4, 2.0)

    assert float((each(free, counts) < truth).mean()) > 0.2


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("name", ["zero_one", "kl", "hoeffding"])
def test_risks_known_on_a_part_of_the_data_are_covered(name: str, delta: float) -> None:
    m, n, risk = 120, 400, 0.2
    rng = generator(6, "coverage.subsample")
    errors = rng.binomial(n, risk, size=(TRIALS, 16)).min(axis=1)
    seen = rng.binomial(m, errors / n)
    forms: dict[str, Callable[[int], float]] = {
        "zero_one": lambda k: subsampled_zero_one(k, m, n, 4.0, delta),
        "kl": lambda k: subsampled_kl(k / m, m, n, 4.0, delta),
        "hoeffding": lambda k: subsampled_hoeffding(k / m, m, n, 4.0, delta),
    }
    assert surely_at_most(int((each(forms[name], seen[:, None]) < risk).sum()), delta)


@pytest.mark.parametrize("delta", DELTAS)
def test_a_posterior_known_through_eight_draws_is_covered(delta: float) -> None:
    n, draws, risks = 150, 8, np.linspace(0.15, 0.45, 16)
    rng = generator(7, "coverage.draws")
    errors = rng.binomial(n, risks, size=(TRIALS, 16))
    best = np.argsort(errors, axis=1, kind="stable")[:, :4]
    drawn = np.take_along_axis(best, rng.integers(0, 4, size=(TRIALS, draws)), axis=1)
    total = np.take_along_axis(errors, drawn, axis=1).sum(axis=1)
    bounds = each(lambda k: monte_carlo_pac_bayes(k / (draws * n), draws, n, 2.0, delta), total[:, None])
    assert surely_at_most(int((bounds < risks[best].mean(axis=1)).sum()), delta)


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("exact_g", [False, True])
def test_the_printed_token_bound_is_covered(delta: float, exact_g: bool) -> None:
    """The claim is about the model smoothed at C / (1 + C), found from the loss of the model before smoothing."""
    counts, _ = markov_tokens(TRIALS)
    chance, model = np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([[0.7, 0.3], [0.45, 0.55]])
    n = int(counts[0].sum())
    price = token_price(n, 0.0, delta)
    weight = price / (1.0 + price)
    mixed = (1.0 - weight) * model + weight / 2.0
    gains = -(mixed * np.log(mixed)).sum(axis=1, keepdims=True) + np.log(mixed)

    def bound(*row: int) -> float:
        loss = float(-(np.array(row) * np.log(model).ravel()).sum() / n)
        square = float((np.array(row) * np.square(gains).ravel()).sum() / n)
        return freedman_printed(loss, square, n, 0.0, delta, vocab_size=2, exact_g=exact_g)

    visits = counts.reshape(-1, 2, 2).sum(axis=2)
    truth = visits @ -(chance * np.log(mixed)).sum(axis=1) / n
    assert surely_at_most(int((each(bound, counts) < truth).sum()), delta)


@pytest.mark.parametrize("delta", DELTAS)
def test_a_requential_run_is_covered_when_its_labels_are_paid_for(delta: float) -> None:
    """Twelve binary labels name one of 4096 students; the teacher leans towards the best of them on the sample."""
    paid, unpaid = requential_bounds(delta)
    assert surely_at_most(int((paid < 0.5).sum()), delta)
    assert float((unpaid < 0.5).mean()) > 1.5 * delta + 0.05, "what the labels tell of the sample has to be paid"


TILT = 0.97


def requential_bounds(delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of TRIALS runs, with the log-ratio and without; every student's true risk is 1/2, on 64 examples."""
    n, found = 64, requential_runs()
    ratio = [(12 - f) * math.log2(2 * TILT) + f * math.log2(2 * (1 - TILT)) for f in range(13)]
    paid = each(lambda k, f: maurer_seeger(k / n, n, max(0.0, ratio[f]), delta), found)
    return paid, each(lambda k, f: maurer_seeger(k / n, n, 0.0, delta), found)


@functools.cache
def requential_runs() -> np.ndarray:
    """(mistakes of the student drawn, labels that did not name the best one) of TRIALS runs."""
    rng, num_labels, rows = generator(9, "coverage.requential"), 12, []
    bits_of = np.array([int(word).bit_count() for word in range(1 << 16)], dtype=np.uint8)
    for _ in range(20):
        words = rng.integers(0, 1 << 64, size=(TRIALS // 20, 1 << num_labels), dtype=np.uint64).view(np.uint16)
        errors = bits_of[words].reshape(TRIALS // 20, -1, 4).sum(axis=2, dtype=np.uint8)
        flipped = rng.random((TRIALS // 20, num_labels)) > TILT
        drawn = errors.argmin(axis=1) ^ (flipped @ (1 << np.arange(num_labels)))
        rows.append(np.stack([errors[np.arange(len(errors)), drawn], flipped.sum(axis=1)], axis=1))
    return np.concatenate(rows).astype(np.int64)
