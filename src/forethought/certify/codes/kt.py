"""The Krichevsky-Trofimov code: symbols pay for the table of their own frequencies as they come.

The mass of a sequence with counts c over L letters is Gamma(L/2) / Gamma(d + L/2) * prod Gamma(c_l + 1/2) / Gamma(1/2),
a law on all sequences of d letters, so no table and no length has to be sent where d and L are known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from forethought.core.errors import InputError

PRECISION = 24  # bits of the fixed-point probabilities that constriction's default coders take


def kt_bits(counts: Sequence[int] | np.ndarray) -> float:
    """Return -log2 of the mass of a sequence with these letter counts, rounded up.

    Raises:
        InputError: there are fewer than two letters, or a count is no whole number of 0 or more.
    """
    given = np.asarray(counts)
    if given.ndim != 1 or len(given) < 2 or given.dtype.kind not in "iu" or int(given.min()) < 0:
        raise InputError("counts must be a list of at least two whole numbers, 0 or more: one for each letter")
    letters = [int(count) for count in given if count > 0]
    half = 0.5 * len(given)
    parts = [math.lgamma(sum(letters) + half), -math.lgamma(half)]
    parts += [math.lgamma(0.5) - math.lgamma(count + 0.5) for count in letters]
    value = math.fsum(parts)
    # lgamma is right to a few units in its last place: the slack covers sixteen of each part.
    slack = 2.0**-48 * math.fsum(abs(part) for part in parts)
    return max(0.0, value + slack) / math.log(2.0) * (1.0 + 2.0**-50)


def kt_weights(counts: np.ndarray) -> np.ndarray:
    """Return the next letter's law after counts [..., L] as integers that sum to 2^24, each at least 1.

    Integer arithmetic alone: floor((2c + 1) (2^24 - L) / (2t + L)) + 1, and what is left over goes to the first of the
    most frequent letters. Two machines never differ.
    """
    num_letters = counts.shape[-1]
    odds = 2 * counts.astype(np.int64) + 1
    total = odds.sum(axis=-1, keepdims=True)
    weights = odds * ((1 << PRECISION) - num_letters) // total + 1
    rest = (1 << PRECISION) - weights.sum(axis=-1)
    first = np.argmax(odds, axis=-1)
    np.put_along_axis(
        weights,
        first[..., None],
        np.take_along_axis(weights, first[..., None], axis=-1) + rest[..., None],
        axis=-1,
    )
    return weights
