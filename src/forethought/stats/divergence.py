"""Binary kl divergence and exact binomial tails, with inverses that err on the safe side.

A certificate may be loose by a rounding error but never tight by one, so every function here says to which side it
rounds, and the rounding is by a bound on the error of the floating-point evaluation, not by hope.
"""

from __future__ import annotations

import math

import numpy as np

from forethought.core.errors import InputError

_EPSILON = float(np.finfo(np.float64).eps)
_SUBNORMAL = 1e-322  # the error of a result so small that its precision is absolute
_CHUNK = 4096
_NEGLIGIBLE = 1e-17
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def bernoulli_kl(q: float, p: float) -> float:
    """Return kl(q || p) of two Bernoulli laws in nats, infinite where p excludes what q allows.

    Raises:
        InputError: q or p is not a probability.
    """
    _check_probability("q", q)
    _check_probability("p", p)
    kl, _ = _kl_with_error(q, p)
    return kl


def kl_inverse_upper(risk: float, budget_nats: float) -> float:
    """Return the largest p with kl(risk || p) <= budget, rounded up: kl at the result is never below the budget.

    The inverse of the Chernoff and PAC-Bayes-kl bounds (Langford & Seeger). At risk 0 it is 1 - exp(-budget).

    Raises:
        InputError: risk is not a probability, or the budget is negative or NaN.
    """
    _check_probability("risk", risk)
    _check_budget(budget_nats)
    if budget_nats == 0 or risk == 1:
        return risk
    if math.isinf(budget_nats):
        return 1.0
    if risk == 0:
        return min(1.0, _up(-math.expm1(-budget_nats)))
    reach = min(math.sqrt(budget_nats / 2.0), math.sqrt(2.0 * risk * budget_nats) + 2.0 * budget_nats)
    low, high = risk, min(1.0, _up(risk + reach))
    while high < 1.0 and not _surely_reaches(risk, high, budget_nats):
        low, high = high, min(1.0, _up(risk + 2.0 * (high - risk)))
    return _bisect_kl(risk, budget_nats, failing=low, reaching=high)


def kl_inverse_lower(risk: float, budget_nats: float) -> float:
    """Return the smallest p with kl(risk || p) <= budget, rounded down: kl at the result is never below the budget.

    Raises:
        InputError: risk is not a probability, or the budget is negative or NaN.
    """
    _check_probability("risk", risk)
    _check_budget(budget_nats)
    if budget_nats == 0 or risk == 0:
        return risk
    if math.isinf(budget_nats):
        return 0.0
    if risk == 1:
        return max(0.0, _down(math.exp(-budget_nats)))
    return _bisect_kl(risk, budget_nats, failing=risk, reaching=0.0)


def log_binomial_tail(errors: int, n: int, p: float) -> float:
    """Return log Pr[Bin(n, p) <= errors] in nats, rounded up, however far down (-7000 nats and below).

    The terms are summed from the largest (at `errors`) outwards in ratios; what is cut off is replaced by its
    geometric majorant, so the tail is never under-estimated.

    Raises:
        InputError: the counts are not 0 <= errors <= n with n >= 1, or p is not a probability.
    """
    _check_counts(errors, n)
    _check_probability("p", p)
    if errors == n or p == 0:
        return 0.0
    if p == 1:
        return -math.inf
    if errors == 0:
        return min(0.0, _towards_zero(n * math.log1p(-p)))
    if errors >= n * p:  # the likely side: one minus the other tail, of which an under-estimate is safe
        upper = math.exp(_log_mass(errors + 1, n, p, _EPSILON * -16.0)) * _ratio_sum(errors + 1, n, p, upwards=True)
        return min(0.0, _towards_zero(math.log1p(-min(upper, 1.0 - _EPSILON))))
    log_mass = _log_mass(errors, n, p, _EPSILON * 16.0)
    return min(0.0, _towards_zero(log_mass + math.log(_ratio_sum(errors, n, p, upwards=False))))


def binomial_tail_inverse(errors: int, n: int, log_delta: float) -> float:
    """Return the largest p with Pr[Bin(n, p) <= errors] >= exp(log_delta), rounded up.

    The exact binomial (Occam, test-set) bound of Langford 2005: with log_delta = log(delta) + log prior mass it bounds
    the risk of a hypothesis that made `errors` mistakes on n examples. At 0 errors it is 1 - exp(log_delta / n).

    Raises:
        InputError: the counts are not 0 <= errors <= n with n >= 1, or log_delta is positive or NaN.
    """
    _check_counts(errors, n)
    if not log_delta <= 0:
        raise InputError(f"log_delta {log_delta} must be the log of a probability, 0 or below")
    if errors == n or math.isinf(log_delta):
        return 1.0
    if log_delta == 0:
        return 0.0
    if errors == 0:
        return min(1.0, _up(-math.expm1(log_delta / n)))
    low, high = 0.0, min(1.0, _up(kl_inverse_upper(errors / n, -log_delta / n)))  # Chernoff's bound is never smaller
    while True:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            return high
        if log_binomial_tail(errors, n, middle) < log_delta:
            high = middle
        else:
            low = middle


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact central interval (low, high) of a binomial probability, each end rounded outwards.

    Raises:
        InputError: the counts are not 0 <= successes <= n with n >= 1, or level is not between 0 and 1.
    """
    _check_counts(successes, n)
    if not 0 < level < 1:
        raise InputError(f"level {level} is out of range; give a number between 0 and 1, such as 0.95")
    log_tail = math.log((1.0 - level) / 2.0)
    low = 1.0 - binomial_tail_inverse(n - successes, n, log_tail)
    return (0.0 if successes == 0 else max(0.0, _down(low))), binomial_tail_inverse(successes, n, log_tail)


def _kl_with_error(q: float, p: float) -> tuple[float, float]:
    """kl(q || p) and a bound on the rounding error of its evaluation."""
    if p <= 0.0:
        return (0.0 if q <= 0.0 else math.inf), 0.0
    if p >= 1.0:
        return (0.0 if q >= 1.0 else math.inf), 0.0
    first = _scaled_log_ratio(q, p, p - q)
    second = _scaled_log_ratio(1.0 - q, 1.0 - p, q - p)
    return max(0.0, first + second), 8.0 * _EPSILON * (abs(first) + abs(second)) + _SUBNORMAL


def _scaled_log_ratio(a: float, b: float, b_minus_a: float) -> float:
    """Return a log(a / b): with log1p near a, where the quotient would cancel."""
    if a == 0.0:
        return 0.0
    if abs(b_minus_a) <= 0.5 * a:
        return -a * math.log1p(b_minus_a / a)
    ratio = a / b
    if 1e-290 < ratio < 1e290:
        return a * math.log(ratio)
    return a * (math.log(a) - math.log(b))


def _surely_reaches(q: float, p: float, budget: float) -> bool:
    kl, error = _kl_with_error(q, p)
    return kl - error >= budget


def _bisect_kl(risk: float, budget: float, *, failing: float, reaching: float) -> float:
    """Bisect to neighbouring floats and return the end at which kl surely reaches the budget."""
    while True:
        middle = 0.5 * (failing + reaching)
        if not min(failing, reaching) < middle < max(failing, reaching):
            return reaching
        if _surely_reaches(risk, middle, budget):
            reaching = middle
        else:
            failing = middle


def _log_mass(k: int, n: int, p: float, slack: float) -> float:
    """Return log Pr[Bin(n, p) = k] for 0 < k, moved by `slack` relative to its parts, in the form of Loader (2000).

    n kl(k / n || p) with Stirling corrections keeps the digits that differences of log-gammas of n lose.
    """
    if k == n:
        exponent = n * math.log(p)
        return exponent + slack * abs(exponent)
    kl, error = _kl_with_error(k / n, p)
    # k / n is rounded: its relative error of one unit moves kl by the slope log(q (1-p) / (p (1-q))).
    slope = abs(math.log(k) - math.log(n - k) - math.log(p) + math.log1p(-p))
    doubt = n * error + k * slope * _EPSILON
    parts = (_stirling(n), _stirling(k), _stirling(n - k), 0.5 * (math.log(n) - math.log(k) - math.log(n - k)))
    value = -n * kl + parts[0] - parts[1] - parts[2] + parts[3] - _HALF_LOG_TWO_PI
    return value + math.copysign(doubt, slack) + slack * (n * kl + sum(abs(part) for part in parts) + 64.0)


def _stirling(n: int) -> float:
    """Return log n! less Stirling's approximation."""
    if n <= 15:
        return math.lgamma(n + 1.0) - ((n + 0.5) * math.log(n) - n + _HALF_LOG_TWO_PI)
    square = float(n) * n
    return (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - 1 / (1188 * square)) / square) / square) / square) / n


def _ratio_sum(k: int, n: int, p: float, *, upwards: bool) -> float:
    """Return the tail from k outwards over the mass at k: not below it downwards, not above it upwards."""
    total, last, num_terms = 1.0, 1.0, 1
    odds = (p / (1.0 - p)) if upwards else ((1.0 - p) / p)
    position, num_left = float(k), (n - k if upwards else k)
    while num_left > 0:
        steps = np.arange(min(_CHUNK, num_left), dtype=np.float64)
        if upwards:
            ratios = (n - position - steps) / (position + steps + 1.0) * odds
        else:
            ratios = (position - steps) / (n - position + steps + 1.0) * odds
        terms = last * np.cumprod(ratios)
        total, last, ratio = total + float(terms.sum()), float(terms[-1]), float(ratios[-1])
        num_left -= len(steps)
        num_terms += len(steps)
        position += len(steps) if upwards else -len(steps)
        remainder = last * ratio / (1.0 - ratio) if ratio < 1.0 else math.inf
        if remainder <= _NEGLIGIBLE * total:
            total += 0.0 if upwards else remainder
            break
    doubt = 4.0 * _EPSILON * num_terms
    return total * (1.0 - doubt if upwards else 1.0 + doubt)


def _up(value: float) -> float:
    """Two floats up: past the error of a library function that is right to one."""
    return math.nextafter(math.nextafter(value, math.inf), math.inf)


def _down(value: float) -> float:
    return math.nextafter(math.nextafter(value, -math.inf), -math.inf)


def _towards_zero(value: float) -> float:
    return value + 4.0 * _EPSILON * abs(value)


def _check_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{name} {value} is not a probability; give a number from 0 to 1")


def _check_budget(budget_nats: float) -> None:
    if not budget_nats >= 0.0:
        raise InputError(f"budget_nats {budget_nats} must be 0 or more; it is a divergence in nats")


def _check_counts(errors: int, n: int) -> None:
    if not (n >= 1 and 0 <= errors <= n):
        raise InputError(f"{errors} of {n} is not a count; give 0 <= count <= n with n at least 1")
