"""Running histograms of which group of outcomes came true and at which rank, forgetting the old at a chosen rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import ArtefactError, InputError

_RESCALE_ABOVE = 1e100


class OutcomeHistogram:
    """Decayed counts by group and rank; an outcome's weight falls by `decay` with every later one."""

    def __init__(self, num_groups: int, num_ranks: int, decay: float = 1.0) -> None:
        """Make an empty histogram.

        Raises:
            InputError: a size is below 1, or the decay is not above 0 and up to 1.
        """
        if num_groups < 1 or num_ranks < 1 or not 0 < decay <= 1:
            raise InputError(
                f"num_groups {num_groups} and num_ranks {num_ranks} must be at least 1, decay {decay} in (0, 1]"
            )
        self.decay = decay
        self._weight = 1.0
        self._counts = np.zeros((num_groups, num_ranks + 1))

    def record(self, group: int, rank: int | None) -> None:
        """Count one outcome; rank None, or past the last, means that no slot would have caught it.

        Raises:
            InputError: the group does not exist, or the rank is negative.
        """
        num_groups, width = self._counts.shape
        if not 0 <= group < num_groups or (rank is not None and rank < 0):
            raise InputError(f"group {group} must be from 0 to {num_groups - 1} and rank {rank} not negative")
        # The newest weighs most instead of all the older being scaled down: one addition an outcome.
        self._weight /= self.decay
        self._counts[group, width - 1 if rank is None else min(rank, width - 1)] += self._weight
        if self._weight > _RESCALE_ABOVE:
            self._counts /= self._weight
            self._weight = 1.0

    @property
    def outcome_counts(self) -> NDArray[np.float64]:
        """Return the decayed count of every group (groups,); the newest outcome counts 1."""
        return self._counts.sum(axis=1) / self._weight

    @property
    def rank_histograms(self) -> NDArray[np.float64]:
        """Return the decayed counts by group and rank (groups, ranks)."""
        return self._counts[:, :-1] / self._weight

    @property
    def beyond(self) -> NDArray[np.float64]:
        """Return the decayed count of outcomes that no rank caught (groups,)."""
        return self._counts[:, -1] / self._weight

    def hit_probability(self, slots: Sequence[int]) -> float:
        """Return the share of what was seen that these slots a group would have caught; 0 before anything was.

        Raises:
            InputError: there is not one number of slots for each group, or one is negative.
        """
        if len(slots) != len(self._counts) or min(slots) < 0:
            raise InputError(f"give one number of slots for each of {len(self._counts)} groups; given {list(slots)}")
        total = float(self._counts.sum())
        caught = sum(float(row[:-1][:num].sum()) for row, num in zip(self._counts, slots, strict=True))
        return caught / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values that from_dict takes back without loss."""
        return {"decay": self.decay, "weight": self._weight, "counts": self._counts.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OutcomeHistogram:
        """Build the histogram from what to_dict gave.

        Raises:
            ArtefactError: the values are not a histogram.
        """
        try:
            counts = np.array(values["counts"], dtype=np.float64)
            weight = float(values["weight"])
            if counts.ndim != 2 or not (np.isfinite(counts) & (counts >= 0)).all() or not 0 < weight < np.inf:
                raise ValueError(f"counts of shape {counts.shape} or weight {weight}")
            made = cls(counts.shape[0], counts.shape[1] - 1, float(values["decay"]))
            made._weight, made._counts = weight, counts
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ArtefactError(f"not an outcome histogram: {error!r}; write one with to_dict") from error
        return made
