"""How many slots each group of outcomes gets: by marginal gain of the hit probability.

A group is an accepted length, a mode, a bin: anything with a probability. Within a group, slots cover its outcomes in
order of rank, so the gain of slot number F + 1 is P(group) times the probability that the outcome has rank F.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.core.errors import InputError


def uniform(num_groups: int, budget: int) -> list[int]:
    """Return equal slots, the first groups one more where the budget does not divide.

    Raises:
        InputError: no groups, or a negative budget.
    """
    _check(num_groups, budget)
    return [budget // num_groups + (group < budget % num_groups) for group in range(num_groups)]


def capped_geometric(acceptance: float, length: int) -> list[float]:
    """Return P(k) for k = 0 to length accepted in a row, each with probability `acceptance` independently.

    Raises:
        InputError: the acceptance is no probability, or the length negative.
    """
    if not (0 <= acceptance <= 1 and length >= 0):
        raise InputError(f"acceptance {acceptance} must be from 0 to 1 and length {length} not negative")
    return [(1 - acceptance) * acceptance**k for k in range(length)] + [acceptance**length]


def geometric_ideal(acceptance: float, length: int, budget: float, r: float = 1.0) -> list[float]:
    """Return the real-valued optimum for misses that fall as F ** -r (arXiv 2603.03251, Theorem 12).

    F_k is proportional to P(k) ** (1 / (1 + r)), which for k = length holds the cap (1 - acceptance) ** (-1 / (1 + r)).

    Raises:
        InputError: a value is out of range.
    """
    if not (r > 0 and budget >= 0):
        raise InputError(f"r {r} must be greater than 0 and budget {budget} not negative")
    weights = [p ** (1.0 / (1.0 + r)) for p in capped_geometric(acceptance, length)]
    return [budget * weight / sum(weights) for weight in weights]


def geometric(acceptance: float, length: int, budget: int, r: float = 1.0) -> list[int]:
    """Return the best whole slots for k = 0 to length accepted, when misses fall as F ** -r; they sum to the budget.

    Every group has a slot if the budget allows. Where it does not, a first slot counts as a sure hit: the law's own
    gain for it, none, is an artefact, since a single guess does hit.

    Raises:
        InputError: a value is out of range.
    """
    _check(length + 1, budget)
    if not r > 0:
        raise InputError(f"r {r} must be greater than 0; 1 is a common value")
    shares = capped_geometric(acceptance, length)

    def gain(group: int, num_slots: int) -> float:
        later = num_slots**-r - (num_slots + 1) ** -r if num_slots else 1.0
        return shares[group] * later

    return _fill(shares, budget, gain, minimum=1)


def empirical(
    outcome_counts: ArrayLike,
    rank_histograms: ArrayLike,
    budget: int,
    *,
    beyond: ArrayLike | None = None,
    minimum: int = 0,
) -> list[int]:
    """Return the best whole slots for observed groups and ranks, by water-filling; they sum to the budget.

    outcome_counts: (groups,) how often each group came true. rank_histograms: (groups, ranks) how often its outcome
    had each rank. beyond: (groups,) how often it had none of these. The histograms are made non-increasing first (the
    maximum-likelihood law among those that fall with rank, Grenander 1956), so taking the best slot at a time is
    optimal. Slots without any gain go to the likelier and poorer groups; `minimum` is held where the budget allows.

    Raises:
        InputError: shapes differ, or a count is negative or not finite.
    """
    counts, ranks = np.asarray(outcome_counts, dtype=np.float64), np.asarray(rank_histograms, dtype=np.float64)
    others = np.zeros(counts.shape) if beyond is None else np.asarray(beyond, dtype=np.float64)
    if counts.ndim != 1 or ranks.ndim != 2 or len(ranks) != len(counts) or others.shape != counts.shape:
        raise InputError(
            f"outcome_counts {counts.shape}, rank_histograms {ranks.shape} and beyond {others.shape} must be "
            "(groups,), (groups, ranks) and (groups,)"
        )
    for values in (counts, ranks, others):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise InputError("counts must be finite and not negative")
    _check(len(counts), budget)
    shares = counts / counts.sum() if counts.sum() else np.full(len(counts), 1.0 / len(counts))
    seen = ranks.sum(axis=1) + others
    gains = [shares[g] * _falling(ranks[g]) / seen[g] if seen[g] else np.zeros(0) for g in range(len(counts))]

    def gain(group: int, num_slots: int) -> float:
        return float(gains[group][num_slots]) if num_slots < len(gains[group]) else 0.0

    return _fill([float(share) for share in shares], budget, gain, minimum)


def _fill(shares: Sequence[float], budget: int, gain: Callable[[int, int], float], minimum: int) -> list[int]:
    slots = [min(minimum, budget // len(shares))] * len(shares)

    def entry(group: int) -> tuple[float, float, int]:
        return -gain(group, slots[group]), -shares[group] / (slots[group] + 1), group

    queue = [entry(group) for group in range(len(shares))]
    heapq.heapify(queue)
    for _ in range(budget - sum(slots)):
        group = queue[0][2]
        slots[group] += 1
        heapq.heapreplace(queue, entry(group))
    return slots


def _falling(histogram: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-increasing fit by pooling adjacent violators."""
    blocks: list[tuple[float, int]] = []
    for value in histogram:
        total, size = float(value), 1
        while blocks and blocks[-1][0] * size <= total * blocks[-1][1]:
            before = blocks.pop()
            total, size = total + before[0], size + before[1]
        blocks.append((total, size))
    return np.array([total / size for total, size in blocks for _ in range(size)])


def _check(num_groups: int, budget: int) -> None:
    if num_groups < 1 or budget < 0 or not math.isfinite(budget):
        raise InputError(f"{num_groups} groups and budget {budget}: give at least one group and no negative budget")
