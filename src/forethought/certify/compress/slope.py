"""What a bit is worth: the derivatives of a bound, from which the weight of the rate in training follows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from forethought.certify.bounds import occam_kl
from forethought.core.errors import InputError

_LOG_2 = math.log(2.0)


@dataclass(frozen=True)
class Slope:
    """Derivatives of a bound at one point; their ratio is the loss in risk that one bit fewer may cost."""

    by_risk: float
    by_bits: float

    @property
    def risk_per_bit(self) -> float:
        """The exchange rate of bits into training risk at an unchanged bound."""
        return self.by_bits / self.by_risk


def bound_slope(risk: float, n: int, bits: float, delta: float) -> Slope:
    """Return the derivatives of the Chernoff-kl Occam bound p: kl(risk || p) = (bits ln 2 + ln 1/delta) / n.

    dp/dbits = p (1 - p) / (p - risk) ln 2 / n and dp/drisk = ln[(1 - q) p / (q (1 - p))] p (1 - p) / (p - q), by the
    implicit function theorem; risk q is kept half an error away from 0, where the second is infinite.

    Raises:
        InputError: an argument is out of range, or the bound is 1 and has no slope.
    """
    q = min(max(risk, 0.5 / n), 1.0 - 0.5 / n)
    p = occam_kl(q, n, bits, delta)
    if not q < p < 1.0:
        raise InputError(f"the bound at risk {risk}, n {n} and {bits} bits is {p}: there is no slope to follow")
    factor = p * (1.0 - p) / (p - q)
    return Slope(factor * math.log((1.0 - q) * p / (q * (1.0 - p))), factor * _LOG_2 / n)


def numerical_slope(bound: Callable[[float, float], float], risk: float, bits: float) -> Slope:
    """Return central differences of any bound(risk, bits), over 0.1 % of the risk and 1 % of the bits."""
    by_risk = (bound(risk * 1.001, bits) - bound(risk * 0.999, bits)) / (0.002 * risk)
    by_bits = (bound(risk, bits * 1.01) - bound(risk, bits * 0.99)) / (0.02 * bits)
    return Slope(by_risk, by_bits)
