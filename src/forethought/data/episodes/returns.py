"""Discounted returns to go, and which of them are whole: a time limit cuts a return, a termination ends it.

Legend: N steps, E episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import ConfigError
from forethought.data.episodes.table import Episodes


@dataclass(frozen=True, slots=True)
class ReturnsToGo:
    """G_t = sum_j discount^j r_(t+j) to the end of the episode, and whether what a cut left out is negligible."""

    values_N: NDArray[np.float32]
    complete_N: NDArray[np.bool_]


def returns_to_go(
    episodes: Episodes,
    *,
    discount: float,
    termination_penalty: float = 0.0,
    tolerance: float = 0.05,
    tail_E: NDArray[Any] | None = None,
) -> ReturnsToGo:
    """Return the discounted return to go of every step.

    `termination_penalty` is taken from the last reward of a terminated episode. An episode that a time limit cut has no
    known return at its end: `tail_E` may give what follows its last step (a bootstrap), else a step counts as complete
    only where discount^(steps left) <= tolerance.

    Raises:
        ConfigError: the discount or the tolerance is outside [0, 1], or tail_E has another length.
    """
    if not (0 <= discount <= 1 and 0 <= tolerance <= 1):
        raise ConfigError(f"discount {discount} and tolerance {tolerance} must lie between 0 and 1")
    count = episodes.num_episodes
    if tail_E is not None and np.shape(tail_E) != (count,):
        raise ConfigError(f"tail_E has shape {np.shape(tail_E)}; give one value for each of the {count} episodes")
    values_N = np.array(episodes.rewards, dtype=np.float64)
    ends = episodes.starts + episodes.lengths
    values_N[ends[episodes.terminated] - 1] -= termination_penalty
    if tail_E is not None:
        cut = ~episodes.terminated
        values_N[ends[cut] - 1] += discount * np.asarray(tail_E, np.float64)[cut]
    # All episodes at once, from the longest remaining step backwards: one vector operation a time step.
    for distance in range(1, int(episodes.lengths.max())):
        rows = (ends - 1 - distance)[episodes.lengths > distance]
        values_N[rows] += discount * values_N[rows + 1]
    remaining_N = np.repeat(ends, episodes.lengths) - np.arange(episodes.num_steps)
    whole_E = episodes.terminated | (tail_E is not None)
    complete_N = np.repeat(whole_E, episodes.lengths) | (np.power(discount, remaining_N) <= tolerance)
    return ReturnsToGo(values_N.astype(np.float32), complete_N)
