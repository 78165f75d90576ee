"""The closed forms of arXiv 2603.03251: they hold for constant times and one hit probability, and check the rest."""

from __future__ import annotations

import math

from forethought.core.errors import InputError


def tokens_per_round(acceptance: float, length: int) -> float:
    """Return E(a, K) = (1 - a**(K+1)) / (1 - a), the tokens of a round with the bonus, K + 1 for a = 1.

    Raises:
        InputError: the acceptance is no probability, or the length negative.
    """
    if not (0.0 <= acceptance <= 1.0 and length >= 0):
        raise InputError(f"acceptance {acceptance} must be from 0 to 1 and length {length} not negative")
    return float(sum(acceptance**k for k in range(length + 1)))


def ssd_speedup(
    hit: float, tokens_hit: float, tokens_miss: float, primary: float, backup: float, batch_size: float = 1.0
) -> float:
    """Return SSD's speed over plain decoding with times in units of a verification (arXiv 2603.03251, theorem 7).

    `primary` is the time to prepare a round, `backup` that to answer a miss, which holds up the whole batch.
    """
    all_hit = hit**batch_size
    tokens = hit * tokens_hit + (1.0 - hit) * tokens_miss
    return tokens / (all_hit * max(1.0, primary) + (1.0 - all_hit) * (1.0 + backup))


def critical_batch_size(hit: float, tokens_hit: float, tokens_slow: float, tokens_fast: float, backup: float) -> float:
    """Return the batch size up to which a slow, good backup beats one that takes no time (corollary 16).

    Infinite where the slow one always wins. `backup` is the slow one's time in units of a verification.
    """
    slow = hit * tokens_hit + (1.0 - hit) * tokens_slow
    fast = hit * tokens_hit + (1.0 - hit) * tokens_fast
    needed = 1.0 - (slow / fast - 1.0) / backup
    return math.inf if needed <= 0.0 else math.log(needed) / math.log(hit)
