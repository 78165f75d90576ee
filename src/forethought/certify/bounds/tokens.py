"""Bounds for losses that come one after another, each depending on what was before: token-level certificates.

With X_k the loss of token k and m_k its mean given the tokens before it, all bound (1/n) sum m_k, the risk of the next
token in the contexts that were in the data. X must lie in [0, range]: mixing the model with the uniform law over V
tokens at weight a gives the range ln(V / a).

Freedman's empirical form: for any guess Y_k known before token k, A_k = Y_k - X_k >= -range, and for 0 < s < 1 the
product of (1 + s A_k / range) exp(-s (Y_k - m_k) / range) is a supermartingale that starts at 1. Ville's inequality at
level delta 2^-bits / |K|, a union over hypotheses and over a fixed grid K of s give `freedman` (Finzi et al. 2025,
arXiv 2504.15208).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from forethought.certify.bounds.budget import check_n, nats, up
from forethought.core.errors import InputError

# K: 1000 values of s, dense near 0, where large n has its optimum. Fixed here, hence fixed before any data.
FREEDMAN_GRID = tuple(float(s) for s in 1.0 / (1.0 + np.geomspace(1e-2, 1e4, 1000)))
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_BLOCK = 1 << 16


def token_price(n: int, bits: float, delta: float, *, num_grid: int = len(FREEDMAN_GRID)) -> float:
    """Return C = (bits ln 2 + ln(|K| / delta)) / n, the price in nats a token, rounded up.

    Raises:
        InputError: an argument is out of range.
    """
    return up(up(nats(bits, delta) + math.log(check_n(num_grid))) / check_n(n))


def smoothing_weight(n: int, bits: float, delta: float) -> float:
    """Return C / (1 + C), the weight of the uniform law that minimises the closed form; a function of the message.

    Raises:
        InputError: an argument is out of range.
    """
    price = token_price(n, bits, delta)
    return price / (1.0 + price)


def smoothing_range(vocab_size: int, weight: float) -> float:
    """Return ln(V / a), the largest loss of a model mixed with the uniform law at weight a, rounded up.

    Raises:
        InputError: the vocabulary has fewer than 2 tokens or the weight is not between 0 and 1.
    """
    vocab_size = check_n(vocab_size, 2)
    if not 0.0 < weight < 1.0:
        raise InputError(f"weight {weight!r} of the uniform law must be between 0 and 1")
    return up(math.log(vocab_size) - math.log(weight))


def azuma(risk: float, n: int, bits: float, delta: float, *, width: float) -> float:
    """Return risk + width sqrt((bits ln 2 + ln(1 / delta)) / 2n) for a mean of n losses of conditional range `width`.

    Where ranges differ from token to token, `width` is the root of their mean square (Lotfi et al. 2024, Theorem 3.1).

    Raises:
        InputError: an argument is out of range.
    """
    n = check_n(n)
    if not (math.isfinite(risk) and 0.0 < width < math.inf):
        raise InputError(f"risk {risk!r} of width {width!r}: give a finite mean loss and the range of a loss")
    return math.nextafter(risk + up(width * math.sqrt(up(nats(bits, delta) / (2.0 * n)))), math.inf)


def freedman(losses: np.ndarray, guesses: np.ndarray, bits: float, delta: float, *, loss_range: float) -> float:
    """Return mean loss + min over s in K of [range C / s + (range / s) mean v(s A_k / range)], v(x) = x - ln(1 + x).

    `losses` and `guesses` are [n]; a guess is any number of 0 or more that is fixed before its token, such as the
    model's own entropy. All s hold at once, so the search for the best one costs nothing more.

    Raises:
        InputError: an argument is out of range, or a loss lies outside [0, range].
    """
    gains, mean = _gains(losses, guesses, loss_range)
    price = token_price(len(gains), bits, delta)
    return freedman_from(lambda s: _mean_v(gains, s / loss_range), mean, price, loss_range)


def freedman_from(mean_v: Callable[[float], float], mean: float, price: float, loss_range: float) -> float:
    """Return the bound of `freedman` from s -> mean v(s A_k / range), an over-estimate, and the mean loss."""

    def excess(index: int) -> float:
        s = FREEDMAN_GRID[index]
        return up(up(up(loss_range * price) + up(loss_range * mean_v(s))) / s)

    return up(mean + _smallest(excess, len(FREEDMAN_GRID)))


def freedman_closed(
    mean_loss: float, mean_square: float, n: int, bits: float, delta: float, *, loss_range: float
) -> float:
    """Return the bound of `freedman` from the mean loss and the mean of A_k^2 alone.

    v(x) <= x^2 / (2 (1 - s)) for x >= -s turns the exact form into mean + C range + min over K of [C range / u +
    u mean_square / (2 range)] with u = s / (1 - s), which is C range + sqrt(2 C mean_square) but for the grid.

    Raises:
        InputError: an argument is out of range.
    """
    price = token_price(n, bits, delta)
    if not (math.isfinite(mean_loss) and 0.0 <= mean_square < math.inf and 0.0 < loss_range < math.inf):
        raise InputError(
            f"mean loss {mean_loss!r}, mean square {mean_square!r} and range {loss_range!r} must be finite"
        )

    def excess(index: int) -> float:
        odds = FREEDMAN_GRID[index] / (1.0 - FREEDMAN_GRID[index])
        return up(up(price * loss_range / odds) + up(odds * mean_square / (2.0 * loss_range)))

    return up(up(mean_loss + up(price * loss_range)) + _smallest(excess, len(FREEDMAN_GRID)))


def freedman_printed(
    train_loss: float, mean_square: float, n: int, bits: float, delta: float, *, vocab_size: int, exact_g: bool = False
) -> float:
    """Return train_loss + C ln V + sqrt(2 C mean_square) + sqrt(2 C), the shape that papers print.

    `train_loss` is that of the model before smoothing at C / (1 + C). With `exact_g` the last term is (1 + C) ln(1 + C)
    - C ln C, of which sqrt(2 C) is a majorant. The square root of the mean square is attained on the grid to within
    its spacing, which is added.

    Raises:
        InputError: an argument is out of range.
    """
    price = token_price(n, bits, delta)
    weight = price / (1.0 + price)
    loss_range = smoothing_range(vocab_size, weight)
    smoothed = freedman_closed(0.0, mean_square, n, bits, delta, loss_range=loss_range)
    variance = up(smoothed - price * loss_range)
    smoothing = (1.0 + price) * math.log1p(price) - price * math.log(price) if exact_g else math.sqrt(2.0 * price)
    return up(up(train_loss + up(price * math.log(vocab_size))) + variance + up(smoothing))


def _gains(losses: np.ndarray, guesses: np.ndarray, loss_range: float) -> tuple[np.ndarray, float]:
    losses, guesses = np.asarray(losses, dtype=np.float64), np.asarray(guesses, dtype=np.float64)
    if losses.ndim != 1 or losses.shape != guesses.shape or len(losses) == 0:
        raise InputError(f"losses {losses.shape} and guesses {guesses.shape} must be two lists of one number a token")
    if not 0.0 < loss_range < math.inf:
        raise InputError(f"loss_range {loss_range!r} must be a finite number above 0, such as ln(V / a)")
    inside = (losses >= -1e-12) & (losses <= loss_range * (1.0 + 1e-12)) & (guesses >= -1e-12) & np.isfinite(guesses)
    if not inside.all():
        first = int(np.argmin(inside))
        raise InputError(
            f"token {first} has loss {losses[first]} and guess {guesses[first]}; losses lie in [0, {loss_range}] and "
            "guesses are finite and not negative: smooth the model first"
        )
    return guesses - losses, up(math.fsum(losses) / len(losses))


def _mean_v(gains: np.ndarray, step: float) -> float:
    """The mean of v(step * A), over-estimated by what rounding can take."""
    totals = []
    for start in range(0, len(gains), _BLOCK):
        x = step * gains[start : start + _BLOCK]
        totals.append(float((x - np.log1p(x)).sum()))
    # The terms are not negative, so the sum is wrong by some twenty units; a term by a few units of x and of its log,
    # which moves by |x| / (1 + x) a unit of x.
    largest, least = step * float(np.abs(gains).max()), step * float(gains.min())
    doubt = 2.0**-49 * largest * (2.0 + 1.0 / (1.0 + min(0.0, least)))
    return max(0.0, math.fsum(totals)) / len(gains) * (1.0 + 2.0**-46) + doubt


def _smallest(function: Callable[[int], float], count: int) -> float:
    """The smallest value found on 0..count-1: a coarse scan and golden sections; all values are sound."""
    step = max(1, count // 24)
    known = {i: function(i) for i in {*range(0, count, step), count - 1}}
    best = min(known, key=lambda i: known[i])
    low, high = max(0, best - step), min(count - 1, best + step)
    while high - low > 2:
        left = high - round(_GOLDEN * (high - low))
        right = max(left + 1, low + round(_GOLDEN * (high - low)))
        for index in (left, right):
            known.setdefault(index, function(index))
        low, high = (low, right) if known[left] <= known[right] else (left, high)
    for index in range(low, high + 1):
        known.setdefault(index, function(index))
    return min(known.values())
