"""The token tree of one request: a chain of drafted tokens behind each verdict that was foreseen.

The chains hang off a shared trunk. A chain that belongs to "k accepted, then this token" sees the committed text, the
first k drafted tokens and itself, and its tokens have the positions of that text. Where their keys and values lie has
nothing to do with it: scratch pages hold depth after depth, a slot for every chain.

Shape suffixes: B branches, D depths, E extra slots of a row, V vocabulary, F guesses of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from forethought.decode.batching.pages import PageManager
from forethought.decode.drafter.drafting import Column
from forethought.decode.drafter.trunk import Share, Trunk
from forethought.nn.rows import Int32


class Branches:
    """The chains behind one answer, and the scratch pages for at most `depth` tokens of each of `budget` chains.

    `ready` is how many tokens every chain has drafted behind its guess, `depth` how many it is to have; `guesses[k]`
    are the likeliest tokens after k accepted ones, the best first.
    """

    def __init__(self, trunk: Trunk, manager: PageManager) -> None:
        self._trunk, self._manager = trunk, manager
        self._pages: list[int] = []
        self._shape = (0, 0)
        self._extra_BD = np.zeros((0, 0), dtype=np.int32)
        self._slots_DB = np.zeros((0, 0), dtype=np.int32)
        self._laws_DBV: Tensor | None = None
        self.guesses: list[list[int]] = []
        self.num_branches = self.ready = self.depth = 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to draft."""
        return self.ready >= self.depth

    def reserve(self, budget: int, depth: int) -> bool:
        """See to scratch pages for so many chains of so many tokens; return whether there are enough."""
        if budget <= self._shape[0] and depth <= self._shape[1]:
            return True
        self.release_pages()
        pages = self._manager.reserve(self._manager.num_needed(budget * depth))
        if pages is None:
            return False
        self._pages, self._shape = pages, (budget, depth)
        size = self._manager.page_size
        slots = (np.array(pages, dtype=np.int32)[:, None] * size + np.arange(size, dtype=np.int32)).reshape(-1)
        self._slots_DB = slots[: budget * depth].reshape(depth, budget)
        self._extra_BD = np.ascontiguousarray(self._slots_DB.T)
        return True

    def release_pages(self) -> None:
        """Give the scratch pages back; chains that are complete can still be taken."""
        self._manager.release(self._pages)
        self._shape = (0, 0)

    def release(self) -> None:
        """Drop the chains and give everything back."""
        self.clear()
        self.release_pages()
        self._laws_DBV = None

    def clear(self) -> None:
        """Drop the chains."""
        self.num_branches = self.ready = self.depth = 0
        self.guesses = []

    def start(self, accepted: Sequence[int], tokens: Sequence[int], depth: int, vocabulary_size: int) -> None:
        """Begin a chain for each verdict (accepted length, bonus token) on the trunk's present draft."""
        self.num_branches, self.depth, self.ready = len(tokens), depth, 0
        self._tokens_DB = np.empty((depth + 1, len(tokens)), dtype=np.int32)
        self._tokens_DB[0] = tokens
        self._stems_B = np.array(accepted, dtype=np.int32) + self._trunk.length
        wanted = (self._shape[1], self._shape[0], vocabulary_size)
        if not self._trunk.is_greedy and (self._laws_DBV is None or self._laws_DBV.shape != wanted):
            self._laws_DBV = torch.empty(wanted, dtype=torch.float32)

    def share(self, only: int | None = None) -> Share:
        """Return the pass that drafts the next token of every chain, or of one of them."""
        count, step = self.num_branches, self.ready
        chosen = slice(0, count) if only is None else slice(only, only + 1)
        stems_B = self._stems_B[chosen]
        return Share(
            self._trunk.pages_P,
            self._tokens_DB[step, chosen],
            stems_B + step,
            self._slots_DB[step, chosen],
            stems_B,
            len(stems_B),
            self._extra_BD[chosen, : step + 1],
        )

    def positions(self, only: int | None = None) -> list[int]:
        """Return the positions of the tokens that the next pass drafts."""
        stems_B = self._stems_B if only is None else self._stems_B[only : only + 1]
        return (stems_B + (self.ready + 1)).tolist()

    def later(self, num_passes: int, only: int | None = None) -> Int32:
        """Return the slots (B, D) of the tokens that the next pass drafts, and of those after it."""
        chosen = slice(0, self.num_branches) if only is None else slice(only, only + 1)
        return np.ascontiguousarray(self._extra_BD[chosen, self.ready + 1 : self.ready + 1 + num_passes])

    def laws(self, only: int | None = None) -> Tensor | None:
        """Return the room (B, V) for the laws of the next pass, None where the draft is greedy."""
        chosen = slice(0, self.num_branches) if only is None else slice(only, only + 1)
        return None if self._laws_DBV is None else self._laws_DBV[self.ready, chosen]

    def push(self, column: Column, only: int | None = None) -> None:
        """Take what the pass that `share` described drafted, or it and the passes after it."""
        chosen = slice(0, self.num_branches) if only is None else slice(only, only + 1)
        room_BV = self.laws(only)
        # They may have been written there in the first place.
        if column.laws_BV is not None and room_BV is not None and column.laws_BV.data_ptr() != room_BV.data_ptr():
            room_BV.copy_(column.laws_BV)
        num_passes = column.tokens_BD.shape[1]
        self._tokens_DB[self.ready + 1 : self.ready + 1 + num_passes, chosen] = column.tokens_BD.T
        self.ready += num_passes

    def chain(self, branch: int) -> tuple[list[int], Tensor | None]:
        """Return the tokens drafted behind a branch's guess so far, and their laws (None: the draft is greedy)."""
        tokens = self._tokens_DB[1 : self.ready + 1, branch].tolist()
        return tokens, None if self._laws_DBV is None else self._laws_DBV[: self.ready, branch]


def fork(guesses: Sequence[Sequence[int]], fan_out: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the verdicts to prepare for: in row k the fan_out[k] likeliest tokens, as lists of k and of tokens."""
    accepted: list[int] = []
    tokens: list[int] = []
    for k, (row, width) in enumerate(zip(guesses, fan_out, strict=True)):
        chosen = row[:width]
        tokens += chosen
        accepted += [k] * len(chosen)
    return accepted, tokens
