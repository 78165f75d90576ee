"""Keys and values in pages: the pool, and one pass's view of it behind the protocol of nn/cache.py.

Shape suffixes: N rows, S sequences, P pages of a sequence, E extra slots, U slots read, L slots a row
names, K key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.core.errors import InputError
from forethought.nn.config import TransformerConfig
from forethought.nn.rows import Int32, Rows

MAX_SLOTS = (1 << 31) - 1


def check_pool(num_pages: int, page_size: int) -> None:
    """Refuse a pool without pages, or one whose slots do not fit an int32.

    Raises:
        InputError: it is such.
    """
    if num_pages < 1 or page_size < 1 or num_pages * page_size > MAX_SLOTS:
        raise InputError(
            f"{num_pages} pages of {page_size} slots; give at least one of each, {MAX_SLOTS} slots at most"
        )


def check_rows(
    rows: Rows, config: TransformerConfig, num_pages: int, page_size: int, later_slots_MK: Int32 | None = None
) -> None:
    """Refuse rows that name what is not there; `later_slots_MK` are those of a chain that follows.

    Positions may lie beyond the model's context by no more than the slots of the pool.

    Raises:
        InputError: the shapes do not belong together, a number is out of range, or a slot is written twice.
    """
    num_rows, num_slots = len(rows.tokens_N), num_pages * page_size
    if rows.pages_SP.ndim != 2 or rows.tokens_N.ndim != 1 or rows.logits_M.ndim != 1:
        raise InputError("tokens_N and logits_M have one axis and pages_SP two, (sequences, pages)")
    num_sequences, width = rows.pages_SP.shape
    later = 0 if later_slots_MK is None else later_slots_MK.shape[1]
    for name in ("positions_N", "slots_N", "sequence_N", "visible_N"):
        if getattr(rows, name).shape != (num_rows,):
            raise InputError(f"{name} has shape {getattr(rows, name).shape} for {num_rows} rows; give one entry a row")
    _check_range("tokens_N", rows.tokens_N, 0, config.vocab_size)
    _check_range("positions_N", rows.positions_N, 0, config.max_positions + num_slots - later)
    _check_range("slots_N", rows.slots_N, 0, num_slots)
    _check_range("sequence_N", rows.sequence_N, 0, num_sequences)
    _check_range("logits_M", rows.logits_M, 0, num_rows)
    grown = later if rows.extra_NE is None else 0
    _check_range("visible_N", rows.visible_N, 0, width * page_size + 1 - grown)
    if rows.extra_NE is not None:
        if rows.extra_NE.ndim != 2 or len(rows.extra_NE) != num_rows:
            raise InputError(f"extra_NE has shape {rows.extra_NE.shape} for {num_rows} rows; give one line a row")
        _check_range("extra_NE", rows.extra_NE, -1, num_slots)
    _check_once(rows.slots_N)
    needed_N = -(-(rows.visible_N + grown) // page_size)
    used_NP = np.arange(width) < needed_N[:, None]
    _check_range("pages_SP", rows.pages_SP[rows.sequence_N][used_NP], 0, num_pages)
    if later_slots_MK is not None:
        if len(later_slots_MK) != len(rows.logits_M):
            raise InputError(f"slots for {len(later_slots_MK)} chains and {len(rows.logits_M)} wanted rows")
        _check_range("slots_MK", later_slots_MK, 0, num_slots)
        _check_once(later_slots_MK.ravel())


def _check_range(name: str, values: NDArray[np.generic], low: int, limit: int) -> None:
    if values.size and not (int(values.min()) >= low and int(values.max()) < limit):
        raise InputError(f"{name} spans {int(values.min())} to {int(values.max())}; allowed is {low} to {limit - 1}")


def _check_once(slots: Int32) -> None:
    ordered = np.sort(slots)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.size:
        raise InputError(f"slot {int(twice[0])} is written twice in one pass; give every row a slot of its own")


class PagedCache:
    """A pool of pages for the keys and values of any number of sequences, a tensor of each a layer.

    Raises:
        InputError: there are no pages, or too many.
    """

    def __init__(
        self,
        config: TransformerConfig,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        check_pool(num_pages, page_size)
        self.page_size, self.device = page_size, device
        shape = (config.resolved_kv_heads, num_pages * page_size, config.resolved_head_dim)
        # Zeros, not what memory holds: a masked slot still enters a product, and 0 times NaN is NaN.
        with torch.inference_mode(False):
            self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
            self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]

    def view(self, rows: Rows) -> PagedView:
        """Return the cache of one pass over rows that have been checked."""
        return PagedView(self, rows)


class PagedView:
    """One pass's view of a pool, a KeyValueCache of one batch row: the slots read first, the pass's own last.

    `mask_NU` says which row sees which of them.
    """

    def __init__(self, pool: PagedCache, rows: Rows) -> None:
        self._pool = pool
        seen_NL, kept_NL = _attended(rows, pool.page_size)
        past_U = np.setdiff1d(seen_NL[kept_NL], rows.slots_N)
        column = np.zeros(pool.keys[0].shape[1], dtype=np.int64)
        column[past_U] = np.arange(len(past_U))
        column[rows.slots_N] = len(past_U) + np.arange(len(rows.slots_N))
        mask_NU = np.zeros((len(rows.slots_N), len(past_U) + len(rows.slots_N)), dtype=bool)
        row_NL = np.broadcast_to(np.arange(len(rows.slots_N))[:, None], seen_NL.shape)
        mask_NU[row_NL[kept_NL], column[seen_NL[kept_NL]]] = True
        self.mask_NU = torch.from_numpy(mask_NU).to(pool.device)
        self._past_U = torch.from_numpy(past_U.astype(np.int64)).to(pool.device)
        self._slots_N = torch.from_numpy(rows.slots_N.astype(np.int64)).to(pool.device)

    @property
    def length(self) -> int:
        """The number of slots read that the pass does not write."""
        return len(self._past_U)

    def append(self, layer: int, keys_BKTD: Tensor, values_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values to their slots and return all that some row sees."""
        stores = (self._pool.keys[layer], self._pool.values[layer])
        for store_KSD, new_BKTD in zip(stores, (keys_BKTD, values_BKTD), strict=True):
            store_KSD[:, self._slots_N] = new_BKTD[0]
        past = [store_KSD.index_select(1, self._past_U)[None] for store_KSD in stores]
        return torch.cat([past[0], keys_BKTD], dim=2), torch.cat([past[1], values_BKTD], dim=2)

    def commit(self, num_tokens: int) -> None:
        """Do nothing: what a slot holds is the page owner's business."""

    def truncate(self, length: int) -> None:
        """Refuse: pages are given and taken by their owner.

        Raises:
            InputError: always.
        """
        raise InputError(f"a view of pages cannot be cut to {length} tokens; give the next rows fewer visible ones")

    def select(self, rows: Tensor | Sequence[int]) -> None:
        """Refuse: the rows of a pass name their own pages.

        Raises:
            InputError: always.
        """
        raise InputError(f"a view of pages has no batch to choose {len(rows)} rows of; give the next rows their pages")


def _attended(rows: Rows, page_size: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The slots that each row attends to, leading positions and extras, and which entries of the array count."""
    longest = int(rows.visible_N.max(initial=0))
    offset_L = np.arange(longest)
    pages_SP = rows.pages_SP.astype(np.int64)
    slots_SL = pages_SP[:, offset_L // page_size] * page_size + offset_L % page_size
    seen_NL = slots_SL[rows.sequence_N]
    kept_NL = offset_L < rows.visible_N[:, None]
    if rows.extra_NE is not None:
        seen_NL = np.concatenate([seen_NL, rows.extra_NE.astype(np.int64)], axis=1)
        kept_NL = np.concatenate([kept_NL, rows.extra_NE >= 0], axis=1)
    return seen_NL, kept_NL
