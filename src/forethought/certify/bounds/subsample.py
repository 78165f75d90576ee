"""Bounds whose empirical risk was measured on m examples drawn from the n that the hypothesis may depend on.

delta is split: a share r pays for the n examples and the union over hypotheses, the rest for the draw of the m, made
after the hypothesis is fixed and so pays for that one hypothesis alone (Lotfi et al. 2024). The m are drawn
uniformly with replacement; r = m / (m + n) unless given.
"""

from __future__ import annotations

import math

from forethought.certify.bounds.budget import check_counts, check_n, check_risk, nats, up
from forethought.certify.bounds.occam import hoeffding, occam_binomial, occam_kl
from forethought.core.errors import InputError
from forethought.stats.divergence import kl_inverse_upper


def subsampled_hoeffding(
    risk: float, m: int, n: int, bits: float, delta: float, *, width: float = 1.0, share: float | None = None
) -> float:
    """Return risk + width [sqrt((bits ln 2 + ln(1 / r delta)) / 2n) + sqrt(ln(1 / (1 - r) delta) / 2m)].

    Raises:
        InputError: an argument is out of range.
    """
    share = _share(m, n, share)
    sampled = hoeffding(risk, m, 0.0, delta * (1.0 - share), width=width)
    return hoeffding(sampled, n, bits, delta * share, width=width)


def subsampled_kl(risk: float, m: int, n: int, bits: float, delta: float, *, share: float | None = None) -> float:
    """Return two nested Chernoff-kl inversions, first of the m drawn, then of the n: for any loss in [0, 1].

    Raises:
        InputError: an argument is out of range.
    """
    share = _share(m, n, share)
    check_risk("risk", risk)
    sampled = kl_inverse_upper(risk, up(nats(0.0, delta * (1.0 - share)) / m))
    return occam_kl(sampled, n, bits, delta * share)


def subsampled_zero_one(errors: int, m: int, n: int, bits: float, delta: float, *, share: float | None = None) -> float:
    """Return the binomial inversion of the m drawn, carried to whole mistakes among n, and inverted again.

    Raises:
        InputError: an argument is out of range.
    """
    errors, m = check_counts(errors, m)
    share = _share(m, n, share)
    sampled = occam_binomial(errors, m, 0.0, delta * (1.0 - share))
    # The risk on the n is a whole number of mistakes over n: the largest not above its bound.
    mistakes = min(n, math.floor(up(sampled * n)))
    return occam_binomial(mistakes, n, bits, delta * share)


def _share(m: int, n: int, share: float | None) -> float:
    m, n = check_n(m), check_n(n)
    share = m / (m + n) if share is None else share
    if not 0.0 < share < 1.0:
        raise InputError(f"share {share!r} must be between 0 and 1: the part of delta that pays for all n examples")
    return share
