"""PAC-Bayes bounds on the mean risk of a posterior Q with KL(Q || P) = bits ln 2, for losses in [0, 1].

Every function takes the empirical mean risk of Q, the number of independent examples, the divergence in bits (that of
a single coded hypothesis is its code length) and delta. Results above 1 are returned as they are: they are vacuous.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from forethought.certify.bounds.budget import check_n, check_risk, nats, up
from forethought.core.errors import InputError
from forethought.stats.divergence import kl_inverse_upper

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def maurer_seeger(risk: float, n: int, bits: float, delta: float) -> float:
    """Return the p at which n kl(risk || p) = KL + ln(2 sqrt(n) / delta) (Langford & Seeger; Maurer 2004).

    Raises:
        InputError: the risk, n, the bits or delta are out of range.
    """
    return kl_inverse_upper(risk, _complexity(risk, n, bits, delta))


def mcallester(risk: float, n: int, bits: float, delta: float) -> float:
    """Return risk + sqrt((KL + ln(2 sqrt(n) / delta)) / 2n), Pinsker's relaxation of the kl bound.

    Raises:
        InputError: the risk, n, the bits or delta are out of range.
    """
    return up(risk + math.sqrt(up(_complexity(risk, n, bits, delta) / 2.0)))


def mcallester_published(risk: float, n: int, bits: float, delta: float) -> float:
    """Return risk + sqrt((KL + ln n + ln(1 / delta)) / (2n - 1)): McAllester 1999, as compression papers print it.

    Raises:
        InputError: the risk, n, the bits or delta are out of range.
    """
    n = check_n(n)
    check_risk("risk", risk)
    return up(risk + math.sqrt(up((nats(bits, delta) + math.log(n)) / (2.0 * n - 1.0))))


def catoni_fixed(train_risk: float, n: int, bits: float, delta: float, temperature: float) -> float:
    """Return Catoni's bound at a temperature lambda that was fixed before the data (Catoni 2007, Theorem 1.2.6).

    [1 - exp(-(lambda / n) (risk + (KL + ln(1 / delta)) / lambda))] / (1 - exp(-lambda / n)).

    Raises:
        InputError: an argument is out of range.
    """
    n = check_n(n)
    check_risk("train_risk", train_risk)
    if not 0.0 < temperature < math.inf:
        raise InputError(f"temperature {temperature!r} must be a finite number above 0")
    return _catoni_value(train_risk, n, nats(bits, delta), temperature)


def catoni(train_risk: float, n: int, bits: float, delta: float, *, ratio: float = 1e-4) -> float:
    """Return Catoni's bound at its best temperature, with the geometric grid of temperatures paid for.

    (KL + ln(1 / delta)) / lambda becomes (1 + a) / lambda (KL + ln(1 / delta) + 2 ln(2 + ln(lambda) / ln(1 + a))) with
    a = `ratio`; it then holds for all lambda > 1 at once, so whichever lambda the search returns is sound (Zhou et al.
    2019, Theorem 4.1).

    Raises:
        InputError: an argument is out of range.
    """
    n = check_n(n)
    check_risk("train_risk", train_risk)
    if not 0.0 < ratio < math.inf:
        raise InputError(f"ratio {ratio!r} must be a finite number above 0")
    budget = nats(bits, delta)
    step = math.log1p(ratio)

    def value(log_temperature: float) -> float:
        paid = up((1.0 + ratio) * (budget + 2.0 * math.log(2.0 + log_temperature / step)))
        return _catoni_value(train_risk, n, paid, math.exp(log_temperature))

    return value(minimise(value, 0.0, math.log(n) + 8.0))


def pac_bayes_lambda(risk: float, n: int, bits: float, delta: float, weight: float | None = None) -> float:
    """Return Thiemann's bound risk / (1 - l / 2) + (KL + ln(2 sqrt(n) / delta)) / (n l (1 - l / 2)), sound for all l.

    Without a weight l, the best one is taken: 2 / (1 + sqrt(2 n risk / complexity + 1)).

    Raises:
        InputError: an argument is out of range, or the weight is not between 0 and 2.
    """
    complexity = _complexity(risk, n, bits, delta)
    if weight is None:
        weight = 2.0 / (1.0 + math.sqrt(2.0 * risk / complexity + 1.0))
    if not 0.0 < weight < 2.0:
        raise InputError(f"weight {weight!r} must be between 0 and 2")
    shrink = 1.0 - weight / 2.0
    return up(up(risk / shrink) + up(complexity / (weight * shrink)))


def pac_bayes_quadratic(risk: float, n: int, bits: float, delta: float) -> float:
    """Return (sqrt(risk + e) + sqrt(e))^2 with e = (KL + ln(2 sqrt(n) / delta)) / 2n (Rivasplata et al. 2019).

    Raises:
        InputError: an argument is out of range.
    """
    half = up(_complexity(risk, n, bits, delta) / 2.0)
    return up(up(math.sqrt(up(risk + half)) + math.sqrt(half)) ** 2)


def tolstikhin_seldin(risk: float, n: int, bits: float, delta: float) -> float:
    """Return risk + sqrt(2 risk e) + 2 e with e = (KL + ln(2 sqrt(n) / delta)) / n, which brackets the kl inverse.

    Raises:
        InputError: an argument is out of range.
    """
    complexity = _complexity(risk, n, bits, delta)
    return up(risk + math.sqrt(up(2.0 * risk * complexity)) + 2.0 * complexity)


def monte_carlo(sampled_risk: float, num_draws: int, delta: float) -> float:
    """Return an upper bound on the empirical risk of Q from the mean risk of num_draws predictors drawn from it.

    kl inverse at ln(2 / delta) / num_draws (Langford & Caruana 2002). Each draw is scored on all of the sample, and the
    mean divides by the number of examples scored, not by the number of batches.

    Raises:
        InputError: an argument is out of range.
    """
    num_draws = check_n(num_draws)
    check_risk("sampled_risk", sampled_risk)
    return kl_inverse_upper(sampled_risk, up(up(nats(0.0, delta) + math.log(2.0)) / num_draws))


def monte_carlo_pac_bayes(
    sampled_risk: float, num_draws: int, n: int, bits: float, delta: float, *, share: float = 0.2
) -> float:
    """Return the PAC-Bayes-kl bound on the mean risk of a stochastic predictor known through num_draws draws.

    `share` of delta pays for the draws and the rest for the sample, so the whole fails with probability at most delta.

    Raises:
        InputError: an argument is out of range.
    """
    if not 0.0 < share < 1.0:
        raise InputError(f"share {share!r} must be between 0 and 1: the part of delta that pays for the draws")
    risk = monte_carlo(sampled_risk, num_draws, delta * share)
    return maurer_seeger(risk, n, bits, delta * (1.0 - share))


def minimise(function: Callable[[float], float], low: float, high: float, *, num_coarse: int = 64) -> float:
    """Return an argument in [low, high] near the smallest value: a coarse scan, then golden sections.

    For bounds that hold at every argument at once: a poor minimiser makes them loose, never wrong.
    """
    points = [low + (high - low) * i / num_coarse for i in range(num_coarse + 1)]
    best = min(range(num_coarse + 1), key=lambda i: function(points[i]))
    low, high = points[max(0, best - 1)], points[min(num_coarse, best + 1)]
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    left_value, right_value = function(left), function(right)
    for _ in range(60):
        if left_value <= right_value:
            high, right, right_value = right, left, left_value
            left = high - _GOLDEN * (high - low)
            left_value = function(left)
        else:
            low, left, left_value = left, right, right_value
            right = low + _GOLDEN * (high - low)
            right_value = function(right)
    return min((points[best], left, right), key=function)


def _complexity(risk: float, n: int, bits: float, delta: float) -> float:
    """(KL + ln(2 sqrt n / delta)) / n, rounded up."""
    n = check_n(n)
    check_risk("risk", risk)
    return up(up(nats(bits, delta) + math.log(2.0) + 0.5 * math.log(n)) / n)


def _catoni_value(risk: float, n: int, budget: float, temperature: float) -> float:
    scale = temperature / n
    exponent = up(up(scale * risk) + up(budget / n))
    return up(up(-math.expm1(-exponent)) / -math.expm1(-scale))
