"""What a paged model computes: rows of tokens from any number of sequences, each with the slots it reads and writes.

A page holds the keys and values of `page_size` consecutive positions; slot s is place s % page_size of page
s // page_size. A row's logical position (for rotary) and its slot have nothing to do with one another, so chains of a
token tree are rows like any other: they share the leading pages of their sequence and name their own ancestors' slots.

Shape suffixes: N rows, M rows whose logits are wanted, S sequences, P pages of a sequence, E extra slots, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from forethought.nn.config import TransformerConfig

Int32: TypeAlias = NDArray[np.int32]


@dataclass(frozen=True)
class Rows:
    """One forward pass over N token rows.

    Row i writes its key and value to `slots_N[i]`, then attends to the leading `visible_N[i]` positions of the pages
    `pages_SP[sequence_N[i]]` and to the slots `extra_NE[i]` (-1 for none). All rows of a layer write before any reads,
    so an ordinary causal row sees `position + 1` positions, itself the last. No slot is written twice in one pass.
    """

    tokens_N: Int32
    positions_N: Int32
    slots_N: Int32
    sequence_N: Int32
    visible_N: Int32
    pages_SP: Int32
    logits_M: Int32
    extra_NE: Int32 | None = None


class PagedModel(Protocol):
    """A causal language model whose keys and values live in a pool of pages.

    A row's result is a function of that row alone: of its token, its position, and the tokens and positions of what it
    attends to in the order named, bit for bit where `exact` is true, whatever other rows run along.
    """

    config: TransformerConfig
    page_size: int
    num_pages: int
    exact: bool

    def logits(self, rows: Rows) -> Tensor:
        """Return the logits (M, V) in float32 after the wanted rows; they hold until the next call."""
        ...

    def greedy(self, rows: Rows) -> NDArray[np.int64]:
        """Return the most likely token (M) after each of the wanted rows, the lowest id among equals."""
        ...
