"""Small pure functions for honest numbers: intervals, corrections and tests of counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.core.errors import InputError
from forethought.stats.divergence import clopper_pearson
from forethought.stats.quantiles import chi_squared_tail, fair_binomial_tails, normal_quantile, t_quantile

__all__ = [
    "Interval",
    "TestResult",
    "clopper_pearson",
    "g_test",
    "g_test_two_samples",
    "holm",
    "mean_interval",
    "median_interval",
    "paired_ratio",
    "wilson",
]


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; `level` is the coverage that the interval is known to have."""

    estimate: float
    low: float
    high: float
    level: float

    def __contains__(self, value: float) -> bool:
        """Return whether a value lies within the ends."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class TestResult:
    """The statistic of a test, its degrees of freedom and its p-value."""

    __test__ = False  # not a test class, whatever a collector may think of the name

    statistic: float
    degrees_of_freedom: int
    p_value: float


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Return the mean with Student's t interval; one value alone has an infinite one.

    Raises:
        InputError: no values, or one is not finite.
    """
    sample = _sample(values, level)
    mean, n = float(sample.mean()), len(sample)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, level)
    half = t_quantile(0.5 + level / 2, n - 1) * float(sample.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, level)


def median_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Return the median with its order-statistic interval, which holds for any continuous law.

    The interval's own level is the exact one of the chosen order statistics: at least the level asked for from 6
    values on (at 0.95); below that it is the whole range, and the level says how little that is worth.

    Raises:
        InputError: no values, or one is not finite.
    """
    sample = np.sort(_sample(values, level))
    n = len(sample)
    # The interval (x_(k+1), x_(n-k)) misses with probability 2 Pr[Bin(n, 1/2) <= k].
    misses = 2.0 * fair_binomial_tails(n)
    fitting = np.flatnonzero(misses <= (1.0 - level) * (1 + 1e-12))
    k = int(fitting[-1]) + 1 if len(fitting) else 0
    attained = 1.0 - float(misses[k - 1]) if k else max(0.0, 1.0 - 2.0 ** (1 - n))
    k = max(k - 1, 0)
    return Interval(float(np.median(sample)), float(sample[k]), float(sample[n - 1 - k]), attained)


def paired_ratio(numerators: ArrayLike, denominators: ArrayLike, level: float = 0.95) -> Interval:
    """Return the median of the pairwise ratios and its interval, for two arms measured in turns.

    Raises:
        InputError: lengths differ, no values, one is not finite, or a denominator is not positive.
    """
    above, below = _sample(numerators, level), _sample(denominators, level)
    if len(above) != len(below):
        raise InputError(f"{len(above)} numerators and {len(below)} denominators; the arms must be measured in pairs")
    if not (below > 0).all():
        raise InputError("every denominator must be greater than 0")
    return median_interval(above / below, level)


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return a proportion with Wilson's score interval (1927), for reports; certificates take clopper_pearson.

    Raises:
        InputError: the counts are not 0 <= successes <= n with n >= 1.
    """
    if not (n >= 1 and 0 <= successes <= n):
        raise InputError(f"{successes} of {n} is not a proportion; give 0 <= successes <= n with n at least 1")
    _check_level(level)
    z, share = normal_quantile(0.5 + level / 2), successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return Interval(share, low, 1.0 if successes == n else min(1.0, centre + half), level)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return Holm's step-down adjusted p-values (1979), in the order given.

    Raises:
        InputError: a value is not a probability.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InputError("p-values must be a list of numbers from 0 to 1")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def g_test(counts: ArrayLike, probabilities: ArrayLike, *, smallest_expected: float = 5.0) -> TestResult:
    """Test counts against a known law by the likelihood ratio (G); sparse cells are pooled first.

    Cells whose expectation is below `smallest_expected` are pooled, smallest first, until the pool reaches it. A count
    where the law allows none is an impossibility: p-value 0.

    Raises:
        InputError: shapes differ, a count is negative, no counts, or the probabilities do not sum to 1.
    """
    observed, law = _counts("counts", counts), np.asarray(probabilities, dtype=np.float64)
    if law.shape != observed.shape or not (law >= 0).all() or abs(float(law.sum()) - 1.0) > 1e-6:
        raise InputError(f"the law must have one probability for each of the {len(observed)} cells and sum to 1")
    num_cells = int((law > 0).sum())
    if observed[law == 0].any():
        return TestResult(math.inf, max(num_cells - 1, 1), 0.0)
    expected = law * observed.sum()
    pooled_observed, pooled_expected = _pool(observed[law > 0], expected[law > 0], expected[law > 0], smallest_expected)
    return _chi_squared(2.0 * _log_ratio_sum(pooled_observed, pooled_expected), len(pooled_observed) - 1)


def g_test_two_samples(first: ArrayLike, second: ArrayLike, *, smallest_expected: float = 5.0) -> TestResult:
    """Test whether two vectors of counts come from one law, by the likelihood ratio (G); sparse cells are pooled.

    Raises:
        InputError: shapes differ, a count is negative, or one sample is empty.
    """
    a, b = _counts("first", first), _counts("second", second)
    if a.shape != b.shape:
        raise InputError(f"the samples have {len(a)} and {len(b)} cells; give both over the same cells")
    share = a.sum() / (a.sum() + b.sum())
    smaller = (a + b) * min(share, 1 - share)
    a, b = _pool(a[smaller > 0], b[smaller > 0], smaller[smaller > 0], smallest_expected)
    both = a + b
    statistic = 2.0 * (_log_ratio_sum(a, both * share) + _log_ratio_sum(b, both * (1 - share)))
    return _chi_squared(statistic, len(a) - 1)


def _pool(
    first: NDArray[np.float64], second: NDArray[np.float64], expected: NDArray[np.float64], smallest: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = np.argsort(expected, kind="stable")
    sparse = int((expected < smallest).sum())
    if sparse:
        reached = int(np.searchsorted(np.cumsum(expected[order]), smallest)) + 1
        sparse = min(max(sparse, reached), len(order))
    rest, pool = order[sparse:], order[:sparse]
    if not sparse:
        return first, second
    return np.append(first[rest], first[pool].sum()), np.append(second[rest], second[pool].sum())


def _log_ratio_sum(observed: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    present = observed > 0
    return float((observed[present] * np.log(observed[present] / expected[present])).sum())


def _chi_squared(statistic: float, degrees_of_freedom: int) -> TestResult:
    if degrees_of_freedom < 1:
        return TestResult(0.0, 0, 1.0)
    statistic = max(statistic, 0.0)
    return TestResult(statistic, degrees_of_freedom, chi_squared_tail(statistic, degrees_of_freedom))


def _counts(name: str, values: ArrayLike) -> NDArray[np.float64]:
    counts = np.asarray(values, dtype=np.float64)
    if counts.ndim != 1 or not (np.isfinite(counts) & (counts >= 0)).all() or not counts.sum() > 0:
        raise InputError(f"{name} must be a list of counts, none negative and not all 0")
    return counts


def _sample(values: ArrayLike, level: float) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise InputError(f"give at least one value, all finite, in one dimension; given shape {sample.shape}")
    _check_level(level)
    return sample


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level {level} is out of range; give a number between 0 and 1, such as 0.95")
