"""Bounds for losses in [0, 1] that are more than right or wrong, by what they spread: betting, empirical Bernstein."""

from __future__ import annotations

import math

import numpy as np

from forethought.certify.bounds.budget import nats, up
from forethought.core.errors import InputError

# The fixed fractions of the largest fair stake; their wealths are averaged, which costs at most ln 40 nats.
STAKES = np.concatenate([np.geomspace(1e-4, 0.4, 32), np.linspace(0.5, 0.99, 8)])
_EPSILON = 2.0**-52


def empirical_bernstein(losses: np.ndarray, bits: float, delta: float) -> float:
    """Return mean + sqrt(2 V ln(2 / d) / n) + 7 ln(2 / d) / (3 (n - 1)) with d = delta 2^-bits and V the variance.

    Maurer & Pontil 2009, Theorem 4; V divides by n - 1. The result is never clipped.

    Raises:
        InputError: there are fewer than two losses, one is outside [0, 1], or bits or delta are out of range.
    """
    losses = check_losses(losses, least=2)
    n = len(losses)
    budget = up(nats(bits, delta) + math.log(2.0))
    mean = math.fsum(losses) / n
    variance = up(math.fsum(np.square(losses - mean)) / (n - 1.0))
    spread = math.sqrt(up(2.0 * variance * budget / n))
    return up(up(mean) + spread + up(7.0 * budget / (3.0 * (n - 1.0))))


def betting(losses: np.ndarray, bits: float, delta: float) -> float:
    """Return the smallest mean against which a bettor would have won 2^bits / delta, rounded up.

    Against a mean m the bettor stakes t = c / (1 - m) on every loss being below it, for each c of a fixed grid, and the
    average wealth prod (1 + t (m - X_i)) is a martingale where m is the true mean, so Ville's inequality bounds
    it (Waudby-Smith & Ramdas 2024). The wealth grows with m, so the means not refuted end at one point.

    Raises:
        InputError: there are no losses, one is outside [0, 1], or bits or delta are out of range.
    """
    losses = check_losses(losses, least=1)
    budget = nats(bits, delta)
    values, counts = np.unique(losses, return_counts=True)
    low, high = math.fsum(losses) / len(losses), 1.0
    while True:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            return high
        if _log_wealth(values, counts, middle) >= budget:
            high = middle
        else:
            low = middle


def _log_wealth(values: np.ndarray, counts: np.ndarray, mean: float) -> float:
    """The log of the average wealth, under-estimated by what rounding can add."""
    stakes = STAKES / (1.0 - mean)
    logs, doubts = np.zeros(len(STAKES)), np.zeros(len(STAKES))
    size = max(1, (1 << 20) // len(STAKES))
    for start in range(0, len(values), size):
        weights = counts[start : start + size]
        odds = stakes[:, None] * (mean - values[start : start + size])
        gains = np.log1p(odds)
        logs += (gains * weights).sum(axis=1)
        # A unit of an argument moves its log by |x| / (1 + x) units; sums in pairs lose a unit a halving.
        doubts += ((4.0 * np.abs(odds) / (1.0 + odds) + 32.0 * np.abs(gains)) * weights).sum(axis=1)
    logs -= _EPSILON * (doubts + 64.0)
    top = float(logs.max())
    return top + math.log(float(np.exp(logs - top).mean())) - 64.0 * _EPSILON * (1.0 + abs(top))


def check_losses(losses: np.ndarray, *, least: int) -> np.ndarray:
    """Return losses as float64 [n]; raise an InputError unless there are enough and all lie in [0, 1]."""
    array = np.asarray(losses, dtype=np.float64)
    if array.ndim != 1 or len(array) < least:
        raise InputError(f"losses have shape {array.shape}; give one number an example, at least {least}")
    wrong = ~((array >= 0.0) & (array <= 1.0))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise InputError(f"loss {array[first]} of example {first} is outside [0, 1]; rescale by the declared range")
    return array
