"""How rows are laid out for a pass of a static shape: groups of rows of one sequence, and every size a bucket.

Shape suffixes: G groups, C cells (places for rows, group by group), N rows asked for, S sequences, P pages, E extra
slots of a group, U pairs of a group and an extra slot, X extra slots of a row, W logits computed, M wanted ones, K
later passes of a chain, Z sizes tried.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from forethought.nn.rows import Int32, Rows

Array = TypeVar("Array", Tensor, NDArray[np.int32])

_EXTRA_STEP = 16
# A group costs the gathering of its keys, a cell a row of every matrix product: so many cells are a group's worth.
_GROUP_WORTH = 32


class Shape(NamedTuple):
    """The sizes of a pass, all of them rounded up."""

    num_groups: int
    rows_per_group: int
    num_pages: int
    num_extras: int
    num_wanted: int

    @property
    def num_cells(self) -> int:
        """The rows that are computed."""
        return self.num_groups * self.rows_per_group

    @property
    def num_words(self) -> int:
        """The 32-bit words that describe a pass."""
        groups, cells = self.num_groups, self.num_cells
        marks = -(-cells * self.num_extras // 4)
        return 4 * cells + self.num_wanted + groups * (self.num_pages + self.num_extras) + marks


class Fields(NamedTuple, Generic[Array]):
    """What describes a pass, as views of one vector of words; place 0 of a group's extras is the slot of zeros."""

    tokens_C: Array
    positions_C: Array
    slots_C: Array
    visible_C: Array
    wanted_W: Array
    pages_GP: Array
    extras_GE: Array
    seen_CE: Array


class Layout:
    """Which cell each row gets, and what describes the pass besides, for rows that have been checked."""

    def __init__(self, rows: Rows, page_size: int, least_pages: int, sink: int, graphed_rows: int) -> None:
        self._sink, num_rows = sink, len(rows.tokens_N)
        counts_S = np.bincount(rows.sequence_N, minlength=len(rows.pages_SP))
        per_group = rows_per_group(counts_S)
        groups_S = -(-counts_S // per_group)
        first_S = np.cumsum(groups_S) - groups_S
        order_N = np.argsort(rows.sequence_N, kind="stable")
        rank_N = np.empty(num_rows, dtype=np.int64)
        rank_N[order_N] = np.arange(num_rows) - np.repeat(np.cumsum(counts_S) - counts_S, counts_S)
        group_N = first_S[rows.sequence_N] + rank_N // per_group
        self._cell_N = group_N * per_group + rank_N % per_group
        self._sequence_G = np.repeat(np.arange(len(counts_S)), groups_S)
        self._num_pages = -(-int(rows.visible_N.max(initial=0)) // page_size)
        self._find_extras(rows, group_N, int(groups_S.sum()))
        num_groups = bucket(int(groups_S.sum()))
        self.shape = Shape(
            num_groups,
            per_group,
            bucket(max(self._num_pages, least_pages)),
            _EXTRA_STEP * bucket(-(-self._num_extras // _EXTRA_STEP)),
            _num_wanted(len(rows.logits_M), num_groups, num_groups * per_group, graphed_rows),
        )

    def _find_extras(self, rows: Rows, group_N: NDArray[np.int64], num_groups: int) -> None:
        """Number the extra slots of each group from 1 on."""
        extra_NX = np.empty((len(group_N), 0), dtype=np.int64) if rows.extra_NE is None else rows.extra_NE
        self._kept_NX = extra_NX >= 0
        pairs_NX = group_N[:, None] * self._sink + extra_NX
        pairs_U, inverse = np.unique(pairs_NX[self._kept_NX], return_inverse=True)
        self._group_U, self._slot_U = np.divmod(pairs_U, self._sink)
        first_G = np.searchsorted(self._group_U, np.arange(num_groups))
        self._place_U = np.arange(1, len(pairs_U) + 1) - first_G[self._group_U]
        self._place_NX = np.zeros(extra_NX.shape, dtype=np.int64)
        self._place_NX[self._kept_NX] = self._place_U[inverse]
        self._num_extras = int(self._place_U.max(initial=0)) + 1

    def fill(self, fields: Fields[NDArray[np.int32]], rows: Rows, num_extra: int | None = None) -> None:
        """Describe rows of this layout, of which each sees the leading `num_extra` of its extra slots (None: all)."""
        cell_N = self._cell_N
        for whole, own in (
            (fields.tokens_C, rows.tokens_N),
            (fields.positions_C, rows.positions_N),
            (fields.visible_C, rows.visible_N),
        ):
            whole.fill(0)
            whole[cell_N] = own
        fields.slots_C.fill(self._sink)
        fields.slots_C[cell_N] = rows.slots_N
        fields.wanted_W.fill(0)
        fields.wanted_W[: len(rows.logits_M)] = cell_N[rows.logits_M]
        fields.pages_GP.fill(0)
        # Whatever stands in entries that no row needs: nothing is read by them.
        fields.pages_GP[: len(self._sequence_G), : self._num_pages] = rows.pages_SP[self._sequence_G, : self._num_pages]
        fields.extras_GE.fill(self._sink + 1)
        fields.extras_GE[self._group_U, self._place_U] = self._slot_U
        row, column = np.nonzero(self._kept_NX[:, :num_extra])
        fields.seen_CE.fill(0)
        fields.seen_CE[cell_N[row], self._place_NX[row, column]] = 1
        # Who sees nothing, as do the cells without a row, sees the slot of zeros.
        fields.seen_CE[:, 0] = (fields.visible_C == 0) & ~fields.seen_CE.any(axis=1)


def bucket(size: int) -> int:
    """Return the smallest of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is not below a size."""
    if size <= 2:
        return max(size, 0)
    power = 1 << (size - 1).bit_length()
    return power // 4 * 3 if power // 4 * 3 >= size else power


def rows_per_group(counts_S: NDArray[np.int64]) -> int:
    """Return how many rows share gathered keys, for so many rows of each sequence; it is a bucket.

    Few large groups gather little and compute many cells without a row where the counts differ.
    """
    largest = int(counts_S.max())
    powers = [1 << power for power in range(largest.bit_length())]
    sizes_Z = np.array(sorted({bucket(count) for count in np.unique(counts_S[counts_S > 0]).tolist()} | set(powers)))
    groups_Z = (-(-counts_S // sizes_Z[:, None])).sum(axis=1).tolist()
    costs = [bucket(groups) * (size + _GROUP_WORTH) for groups, size in zip(groups_Z, sizes_Z.tolist(), strict=True)]
    return int(sizes_Z[int(np.argmin(costs))])


def _num_wanted(count: int, num_groups: int, num_cells: int, graphed_rows: int) -> int:
    """How many logits are computed: few different numbers for passes that are captured."""
    if count == 0 or num_cells > graphed_rows:
        return bucket(count)
    # One row of each group is the common case, or all; a row may be wanted twice.
    for enough in (num_groups, num_cells):
        if count <= enough:
            return enough
    return bucket(count)


def later_rows(rows: Rows, slots_MK: Int32, step: int) -> Rows:
    """Return the rows of a later pass of a chain, every chain alive and its token not yet known."""
    row, branch = rows.logits_M, rows.extra_NE is not None
    return Rows(
        tokens_N=np.zeros(len(row), dtype=np.int32),
        positions_N=rows.positions_N[row] + np.int32(step),
        slots_N=slots_MK[:, step - 1],
        sequence_N=rows.sequence_N[row],
        visible_N=rows.visible_N[row] + np.int32(0 if branch else step),
        pages_SP=rows.pages_SP,
        logits_M=np.arange(len(row), dtype=np.int32),
        extra_NE=None if rows.extra_NE is None else np.hstack([rows.extra_NE[row], slots_MK]),
    )


def carve(words_I: Array, bytes_I: Array, shape: Shape) -> Fields[Array]:
    """Return the fields of a pass as views of its words and of the bytes of the same memory."""
    groups, cells = shape.num_groups, shape.num_cells
    sizes = [cells] * 4 + [shape.num_wanted, groups * shape.num_pages, groups * shape.num_extras]
    ends = np.cumsum(sizes).tolist()
    tokens, positions, slots, visible, wanted, pages, extras = (
        words_I[end - size : end] for end, size in zip(ends, sizes, strict=True)
    )
    seen = bytes_I[4 * ends[-1] : 4 * ends[-1] + cells * shape.num_extras]
    whole = (pages.reshape(groups, -1), extras.reshape(groups, -1), seen.reshape(cells, -1))
    return Fields(tokens, positions, slots, visible, wanted, *whole)
