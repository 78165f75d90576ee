"""Batches as a pure function of the step: every epoch reshuffles the documents, packs them and permutes the windows.

An epoch is one stream: a separator, then the shuffled documents, each with its own separator behind it. Windows of
`context` targets are cut from it one behind the other; a window's inputs start one position before its targets, so
every token (separators included) is predicted exactly once an epoch. The last window may be short and is filled up
with targets that losses ignore. Row r of step s is window s * batch_size + r of the endless sequence of epochs, so no
batch is short and none of an epoch's windows is left out. Nothing is stored between calls: resuming is calling
batch(step).

Shape suffixes: B rows of this rank, T context, D documents, W windows.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forethought.core import rng
from forethought.core.errors import ConfigError, DataError
from forethought.data.shards import TokenDataset

IGNORED_TARGET = -100
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs and targets (B x T, int64, ignored targets -100) and, if asked for, which document each input is in.

    Documents are numbered from 1 in each row; equal numbers may attend to one another. A separator belongs to the
    document behind it, whose first token is predicted from it.
    """

    tokens_BT: Ids
    targets_BT: Ids
    documents_BT: Ids | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """One epoch: where the stream's documents lie in the split and in the stream, and the order of the windows."""

    shift_D: Ids
    starts_D: Ids
    windows_W: Ids


class PackedBatches:
    """Training batches of one rank; `batch(step)` depends on its arguments alone and keeps only a bounded cache.

    The rows of all ranks, in the order of the ranks, are the same for any world size.

    Raises:
        ConfigError: batch_size is not a positive multiple of world_size, context is below 1, or rank is out of range.
        DataError: the split is empty.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        *,
        batch_size: int,
        context: int,
        seed: int,
        stream: str = "train",
        document_mask: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_shape(dataset, batch_size, context)
        if world_size < 1 or not 0 <= rank < world_size or batch_size % world_size:
            raise ConfigError(
                f"batch_size {batch_size} must be a multiple of world_size {world_size}, and rank {rank} below it"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.context = context
        self._seed, self._stream = seed, stream
        self._document_mask = document_mask
        rows = batch_size // world_size
        self._rows = range(rank * rows, (rank + 1) * rows)
        self.windows_per_epoch = math.ceil(dataset.num_tokens / context)
        self._plans: OrderedDict[int, _Plan] = OrderedDict()
        self._max_plans = 2 + math.ceil(batch_size / self.windows_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every token has been predicted at least once; `steps_for` is exact over many epochs."""
        return self.steps_for(1)

    def steps_for(self, epochs: float) -> int:
        """Return how many steps show every window `epochs` times (rounded up to a whole step)."""
        return math.ceil(epochs * self.windows_per_epoch / self.batch_size)

    def epoch_of(self, step: int) -> int:
        """Return the epoch that the first row of a step belongs to."""
        return step * self.batch_size // self.windows_per_epoch

    def batch(self, step: int) -> Batch:
        """Return this rank's rows of a step.

        Raises:
            ConfigError: step is negative.
            DataError: the shard holds an id above its vocabulary.
        """
        if step < 0:
            raise ConfigError(f"step {step} is negative; steps count from 0")
        first = step * self.batch_size
        rows = [self._row(first + row) for row in self._rows]
        return _as_batch(rows, self.context, self.dataset.end_of_text, self._document_mask)

    def _row(self, number: int) -> Ids:
        epoch, position = divmod(number, self.windows_per_epoch)
        plan = self._plan(epoch)
        start = int(plan.windows_W[position]) * self.context
        end = min(start + self.context, self.dataset.num_tokens)
        return _stream(self.dataset, plan, start, end + 1)

    def _plan(self, epoch: int) -> _Plan:
        plan = self._plans.get(epoch)
        if plan is None:
            plan = self._make_plan(epoch)
            self._plans[epoch] = plan
            while len(self._plans) > self._max_plans:
                self._plans.popitem(last=False)
        self._plans.move_to_end(epoch)
        return plan

    def _make_plan(self, epoch: int) -> _Plan:
        documents = rng.generator(self._seed, f"{self._stream}.documents", epoch)
        windows = rng.generator(self._seed, f"{self._stream}.windows", epoch)
        order = documents.permutation(self.dataset.num_documents)
        return _plan_of(self.dataset, order, windows.permutation(self.windows_per_epoch))


def evaluation_batches(
    dataset: TokenDataset, batch_size: int, context: int, limit_tokens: int = 0, *, document_mask: bool = False
) -> Iterator[Batch]:
    """Yield a split in its own order, every token a target exactly once, only the first limit_tokens where given.

    Windows do not overlap but for the one input that precedes the first target. All batches have T = context; the last
    has fewer rows, and what is missing in its last row has target -100.

    Raises:
        ConfigError: batch_size or context is below 1, or limit_tokens is negative.
        DataError: the split is empty.
    """
    _check_shape(dataset, batch_size, context)
    if limit_tokens < 0:
        raise ConfigError(f"limit_tokens {limit_tokens} is negative; give 0 for the whole split")
    return _evaluation_batches(dataset, batch_size, context, limit_tokens, document_mask)


def _evaluation_batches(
    dataset: TokenDataset, batch_size: int, context: int, limit_tokens: int, document_mask: bool
) -> Iterator[Batch]:
    total = min(limit_tokens or dataset.num_tokens, dataset.num_tokens)
    plan = _plan_of(dataset, np.arange(dataset.num_documents), np.empty(0, np.int64))
    starts = range(0, total, context)
    for first in range(0, len(starts), batch_size):
        group = starts[first : first + batch_size]
        rows = [_stream(dataset, plan, start, min(start + context, total) + 1) for start in group]
        yield _as_batch(rows, context, dataset.end_of_text, document_mask)


def _check_shape(dataset: TokenDataset, batch_size: int, context: int) -> None:
    if batch_size < 1 or context < 1:
        raise ConfigError(f"batch_size {batch_size} and context {context} must be at least 1")
    if dataset.num_tokens == 0:
        raise DataError(f"{dataset.path} holds no tokens; prepare the corpus with a share above 0 for this split")


def _plan_of(dataset: TokenDataset, order: Ids, windows_W: Ids) -> _Plan:
    bounds = dataset.document_bounds
    lengths_D = np.diff(bounds)[order]
    # Position 0 of the stream is the leading separator, so documents start at 1.
    starts_D = 1 + np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths_D)[:-1]))
    return _Plan(shift_D=bounds[:-1][order] - starts_D, starts_D=starts_D, windows_W=windows_W)


def _stream(dataset: TokenDataset, plan: _Plan, start: int, end: int) -> Ids:
    begin = max(start, 1)
    first, last = np.searchsorted(plan.starts_D, (begin, end - 1), side="right") - 1
    edges = np.concatenate(([begin], plan.starts_D[first + 1 : last + 1], [end]))
    positions = np.arange(begin, end) + np.repeat(plan.shift_D[first : last + 1], np.diff(edges))
    tokens = dataset.gather(positions)
    return tokens if start else np.concatenate(([dataset.end_of_text], tokens))


def _as_batch(rows: list[Ids], context: int, separator: int, document_mask: bool) -> Batch:
    tokens_BT = np.full((len(rows), context), separator, dtype=np.int64)
    targets_BT = np.full((len(rows), context), IGNORED_TARGET, dtype=np.int64)
    for row, stream in enumerate(rows):
        tokens_BT[row, : len(stream) - 1] = stream[:-1]
        targets_BT[row, : len(stream) - 1] = stream[1:]
    if not document_mask:
        return Batch(tokens_BT, targets_BT)
    separators_BT = tokens_BT == separator
    separators_BT[:, 0] = True
    return Batch(tokens_BT, targets_BT, np.cumsum(separators_BT, axis=1))
