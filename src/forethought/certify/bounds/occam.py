"""Bounds for one deterministic hypothesis that a prior paid for: exact binomial, Chernoff-kl and Hoeffding.

With prior mass P(h) = 2^-bits fixed before the data were seen, each holds with probability 1 - delta over the sample,
for all hypotheses at once. The first is never above the second, nor the second above the third, so the smallest of the
three may be printed without a further union.
"""

from __future__ import annotations

import math

from forethought.certify.bounds.budget import check_counts, check_n, check_risk, nats, up
from forethought.core.errors import InputError
from forethought.stats.divergence import binomial_tail_inverse, kl_inverse_upper


def kl_inverse(risk: float, budget_nats: float) -> float:
    """Return the largest p with kl(risk || p) <= budget_nats, rounded up; at risk 0 it is 1 - exp(-budget).

    Raises:
        InputError: risk is not a probability, or the budget is negative or NaN.
    """
    return kl_inverse_upper(risk, budget_nats)


def occam_binomial(errors: int, n: int, bits: float, delta: float) -> float:
    """Return the largest p with Pr[Bin(n, p) <= errors] >= delta 2^-bits, rounded up.

    The exact Occam bound of a deterministic classifier whose 0-1 loss was counted on n independent examples (Langford
    2005); the tail is followed as far down as the bits demand, 2^-10000 and below.

    Raises:
        InputError: the counts, the bits or delta are out of range.
    """
    errors, n = check_counts(errors, n)
    return binomial_tail_inverse(errors, n, -nats(bits, delta))


def occam_kl(risk: float, n: int, bits: float, delta: float) -> float:
    """Return the p at which n kl(risk || p) = bits ln 2 + ln(1 / delta): Chernoff and a union, for any loss in [0, 1].

    Raises:
        InputError: the risk, n, the bits or delta are out of range.
    """
    n = check_n(n)
    check_risk("risk", risk)
    return kl_inverse_upper(risk, up(nats(bits, delta) / n))


def hoeffding(risk: float, n: int, bits: float, delta: float, *, width: float = 1.0) -> float:
    """Return risk + width sqrt((bits ln 2 + ln(1 / delta)) / 2n), never clipped: the countable-hypothesis bound.

    `risk` is a mean of n independent losses that lie in an interval of length `width`.

    Raises:
        InputError: n, the bits, delta or the width are out of range, or the risk is not finite.
    """
    n = check_n(n)
    if not (math.isfinite(risk) and 0.0 < width < math.inf):
        raise InputError(f"risk {risk!r} of width {width!r}: give a finite mean loss and the length of its interval")
    penalty = up(width * math.sqrt(up(nats(bits, delta) / (2.0 * n))))
    return math.nextafter(risk + penalty, math.inf)
