"""The random numbers of one request: a function of seed, purpose and position, so hits, timing and batches change none.

Draft and verification draw from streams of different names, which is what makes them independent. The draft's number
of a position serves every draft that is ever made for that position. This is sound: a position's number reaches the
output only when the draft at that position is examined, and then that position is decided for good; of several
drafts for one position (later rounds, branches of SSD) at most that one has been examined.
"""

from __future__ import annotations

import numpy as np

from forethought.core.rng import generator

_BLOCK = 256


class Chance:
    """The random numbers of one request, from its seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._blocks: dict[int, list[float]] = {}

    def draft(self, position: int) -> float:
        """Return the uniform number from [0, 1) with which a draft of the token at this position is drawn."""
        block, offset = divmod(position, _BLOCK)
        numbers = self._blocks.get(block)
        if numbers is None:
            numbers = self._blocks[block] = generator(self._seed, "decode.draft", block).random(_BLOCK).tolist()
        return numbers[offset]

    def verification(self, position: int) -> np.random.Generator:
        """Return the generator of the verification whose first undecided token stands at this position."""
        return generator(self._seed, "decode.verify", position)
