"""Batches of members: each member's own order of the same text, a fixed packing for cached labels, and mixtures.

Legend: K members, B batch, T time, W windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from forethought.core import rng
from forethought.data import Batch, PackedBatches, TokenDataset, evaluation_batches
from forethought.pretrain.config import FitConfig

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MembersBatch:
    """One batch of every member: inputs and targets (K x B x T), its number, and the windows where they are fixed."""

    index: int
    tokens_KBT: Ids
    targets_KBT: Ids
    documents_KBT: Ids | None = None
    windows_KB: Ids | None = None


class Order(Protocol):
    """A member's batches by number, and which fixed windows they are, where the packing is fixed."""

    def batch(self, step: int, /) -> Batch:
        """Return one batch."""
        ...

    def windows(self, step: int, /) -> Ids | None:
        """Return the numbers of its windows, or None where windows are packed anew."""
        ...


class Reshuffled:
    """Documents shuffled and packed anew every epoch, or as in the first epoch for ever."""

    def __init__(self, packed: PackedBatches, *, reshuffle: bool) -> None:
        self._packed, self._reshuffle = packed, reshuffle

    def batch(self, step: int, /) -> Batch:
        """Return one batch."""
        return self._packed.batch(step if self._reshuffle else step % self._packed.steps_per_epoch)

    def windows(self, _step: int, /) -> Ids | None:
        """Return None: the windows have no lasting numbers."""
        return None


class Windows(Protocol):
    """Windows with lasting numbers, for which a teacher's laws can be cached, in some order."""

    tokens_WT: Ids
    targets_WT: Ids

    def windows(self, step: int, /) -> Ids:
        """Return the numbers of the windows of one batch."""
        ...

    def batch(self, step: int, /) -> Batch:
        """Return one batch."""
        ...


class FixedWindows:
    """The windows of a split in its own order, permuted every epoch, so that a teacher's laws can be cached."""

    def __init__(self, dataset: TokenDataset, *, batch_size: int, context: int, seed: int) -> None:
        batches = list(evaluation_batches(dataset, 64, context))
        self.tokens_WT = np.concatenate([batch.tokens_BT for batch in batches])
        self.targets_WT = np.concatenate([batch.targets_BT for batch in batches])
        self._batch_size, self._seed = batch_size, seed

    def windows(self, step: int, /) -> Ids:
        """Return the numbers of the windows of one batch."""
        count = len(self.tokens_WT)
        rows = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        return np.array([self._permutation(int(row) // count)[int(row) % count] for row in rows], dtype=np.int64)

    def batch(self, step: int, /) -> Batch:
        """Return one batch."""
        chosen = self.windows(step)
        return Batch(self.tokens_WT[chosen], self.targets_WT[chosen])

    def _permutation(self, epoch: int) -> Ids:
        return rng.generator(self._seed, "pretrain.fixed-windows", epoch).permutation(len(self.tokens_WT))


class Mixture:
    """Rows of two sources in a fixed proportion: of any n rows, floor(n * share) come from the other source."""

    def __init__(self, real: PackedBatches, other: PackedBatches, *, share: float, batch_size: int) -> None:
        self._real, self._other, self._share, self._batch_size = real, other, share, batch_size

    def batch(self, step: int, /) -> Batch:
        """Return one batch."""
        rows = [self._row(row) for row in range(step * self._batch_size, (step + 1) * self._batch_size)]
        return Batch(np.concatenate([row.tokens_BT for row in rows]), np.concatenate([row.targets_BT for row in rows]))

    def windows(self, _step: int, /) -> Ids | None:
        """Return None: the windows have no lasting numbers."""
        return None

    def _row(self, row: int) -> Batch:
        before, is_other = _others_before(row, self._share)
        return self._other.batch(before) if is_other else self._real.batch(row - before)


class FixedMixture:
    """Fixed windows of two sources, those of the second numbered behind the first's, in a fixed proportion of rows."""

    def __init__(self, real: FixedWindows, other: FixedWindows, *, share: float, batch_size: int) -> None:
        self._real, self._other, self._share, self._batch_size = real, other, share, batch_size
        self.tokens_WT = np.concatenate([real.tokens_WT, other.tokens_WT])
        self.targets_WT = np.concatenate([real.targets_WT, other.targets_WT])

    def windows(self, step: int, /) -> Ids:
        """Return the numbers of the windows of one batch."""
        return np.concatenate([self._row(row) for row in range(step * self._batch_size, (step + 1) * self._batch_size)])

    def batch(self, step: int, /) -> Batch:
        """Return one batch."""
        chosen = self.windows(step)
        return Batch(self.tokens_WT[chosen], self.targets_WT[chosen])

    def _row(self, row: int) -> Ids:
        before, is_other = _others_before(row, self._share)
        return self._other.windows(before) + len(self._real.tokens_WT) if is_other else self._real.windows(row - before)


def labelled_windows(
    data: TokenDataset, other: TokenDataset | None, fit: FitConfig, *, seed: int, share: float = 0.0
) -> FixedWindows | FixedMixture:
    """Return the windows that a teacher's laws are cached for: those of the text, and of a second one mixed in."""
    if other is None:
        return FixedWindows(data, batch_size=fit.batch_size, context=fit.context, seed=seed)
    # Rows are drawn one by one, so that each source runs through its own permutations.
    parts = [FixedWindows(each, batch_size=1, context=fit.context, seed=seed) for each in (data, other)]
    return FixedMixture(parts[0], parts[1], share=share, batch_size=fit.batch_size)


def _others_before(row: int, share: float) -> tuple[int, bool]:
    """How many rows before this one come from the other source, and whether this one does."""
    before, after = int(row * share + 1e-9), int((row + 1) * share + 1e-9)
    return before, after > before


def stacked_batches(orders: Sequence[Order]) -> Callable[[int], MembersBatch]:
    """Return batches by number in which each member reads its own order."""

    def batch(index: int) -> MembersBatch:
        parts = [order.batch(index) for order in orders]
        windows = [order.windows(index) for order in orders]
        documents = [part.documents_BT for part in parts]
        return MembersBatch(
            index,
            np.stack([part.tokens_BT for part in parts]),
            np.stack([part.targets_BT for part in parts]),
            np.stack([each for each in documents if each is not None]) if documents[0] is not None else None,
            np.stack([each for each in windows if each is not None]) if windows[0] is not None else None,
        )

    return batch
