"""One request on the draft's side: what it was answered, and what is prepared for the verdict on that.

Shape suffixes: K drafted tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forethought.decode.drafter.branches import Branches
from forethought.decode.drafter.trunk import Trunk
from forethought.decode.sources.ngram import NgramIndex
from forethought.decode.wire.protocol import Demand, Origin, Tag


class Drafted(NamedTuple):
    """Drafted tokens and the laws that they were drawn from, None where no chance was in them."""

    tokens: list[int]
    laws_KV: NDArray[np.float32] | None = None

    def part(self, start: int, stop: int) -> Drafted:
        """Return some of the tokens with their laws."""
        return Drafted(self.tokens[start:stop], None if self.laws_KV is None else self.laws_KV[start:stop])


@dataclass(eq=False, slots=True)
class Lane:
    """One request: its trunk, its branches, the answer that they belong to and how long it all took.

    `serial` names the answer in the cache of outcomes. The trunk is to be read up to `read_to` before anything else.
    """

    trunk: Trunk
    branches: Branches
    demand: Demand
    read_to: int
    serial: int = 0
    answer: Drafted = field(default_factory=lambda: Drafted([]))
    origin: Origin = Origin.NONE
    missed: bool = False
    answered_at: float = 0.0
    glue_seconds: float = 0.0
    tree_seconds: float = 0.0
    index: NgramIndex | None = None

    @property
    def tag(self) -> Tag:
        """The state that the request is in."""
        trunk = self.trunk
        return Tag(trunk.request, trunk.epoch, trunk.round, trunk.prefix_hash)

    @property
    def wanted(self) -> int:
        """How many tokens the next draft may have."""
        return max(0, min(self.demand.wanted, self.trunk.limit - self.trunk.length))

    @property
    def depth(self) -> int:
        """How many tokens behind a foreseen verdict could be of use and fit the model's context."""
        trunk = self.trunk
        room = trunk.max_positions - trunk.length - trunk.num_drafted
        return min(self.demand.wanted, room, trunk.max_length - trunk.length - 2)

    def follow(self, tokens: list[int], matched: int, branch: int | None) -> Drafted | None:
        """Return what is at hand behind committed tokens, of which `matched` are the present answer's own.

        Where they end inside the answer, the rest of it still stands: it was drawn after exactly this text. Otherwise
        they leave it for a branch, by its guess and perhaps some of its tokens.
        """
        if matched == len(tokens) and len(self.answer.tokens) > matched:
            return self.answer.part(matched, len(self.answer.tokens))
        if branch is None:
            return None
        chain, laws_KV = self.branches.chain(branch)
        inside = tokens[matched + 1 :]
        if chain[: len(inside)] != inside:
            return None
        copied_KV = None if laws_KV is None else laws_KV.numpy().copy()
        return Drafted(chain, copied_KV).part(len(inside), len(chain))

    def look_up(self, k: int) -> list[int]:
        """Return what followed the last tokens where they stood before in the text."""
        trunk = self.trunk
        if self.index is None:
            self.index = NgramIndex()
        self.index.extend(trunk.text[len(self.index.tokens) : trunk.length].tolist())
        return self.index.continuation(k)
