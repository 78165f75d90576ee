"""How verdicts fall in a simulation: by laws of acceptance and ranks, or as recorded from a real pair of models.

A simulated token is a number without a text. The bonus token's number is its rank among the draft's guesses, so that
foreseeing it means having prepared for that rank. Draws are functions of (seed, request, position): the same text is
met whatever the plan, so that plans are compared on equal terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from forethought.core.config import config
from forethought.core.rng import generator

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Draws = Literal["independent", "stratified"]
BEYOND = 4095
_BLOCK = 256
# The plane's most even additive sequence: powers of the inverse of the real root of x**3 = x + 1.
_STEPS = (0.7548776662466927, 0.5698402909980532)


@config
class RankLaw:
    """The law of the bonus token's rank: more than F guesses are needed with chance miss * F ** -exponent.

    `caught` gives the chances for F = 1, 2, ... guesses instead, and nothing beyond is ever caught.

    Raises:
        ConfigError: a value is no probability, or `caught` falls.
    """

    miss: Probability = 0.3
    exponent: Annotated[float, Field(gt=0.0)] = 1.0
    caught: tuple[Probability, ...] = ()

    @model_validator(mode="after")
    def _rises(self) -> RankLaw:
        if any(later < sooner for sooner, later in pairwise(self.caught)):
            raise ValueError(f"caught {list(self.caught)} must not fall: more guesses never catch less")
        return self

    def hit(self, num_guesses: int) -> float:
        """Return the chance that so many guesses catch the bonus token."""
        if num_guesses < 1:
            return 0.0
        if self.caught:
            return self.caught[min(num_guesses, len(self.caught)) - 1]
        return 1.0 - self.miss * num_guesses**-self.exponent

    def rank(self, uniform: float) -> int:
        """Return the rank that belongs to a uniform number, BEYOND for one that no number of guesses catches."""
        if self.caught:
            rank = int(np.searchsorted(np.asarray(self.caught), uniform, side="right"))
            return rank if rank < len(self.caught) else BEYOND
        left = 1.0 - uniform
        if left > self.miss:
            return 0
        guesses = (left / self.miss) ** (-1.0 / self.exponent) if left > 0.0 else math.inf
        return int(min(math.ceil(min(guesses, 1e6)) - 1, BEYOND))


@config
class Recording:
    """One text as the target wrote it, greedily: for each position the rank of its token in the draft's law.

    `ngrams` has for each position how many tokens prompt lookup proposed (up to the longest asked for) and how many of
    them were right. Of rank 0 is what the draft would draft, so any draft at any position can be judged from this.
    """

    ranks: Annotated[tuple[int, ...], Field(min_length=1)]
    ngrams: tuple[tuple[int, int], ...] = ()


@config
class Behaviour:
    """How a draft fits a target on one kind of text.

    `acceptance` is the chance of each position of a draft to be kept when all before it were; the last goes on.
    `rejected` and `accepted` are the laws of the rank after a rejection and after a fully accepted draft. Prompt lookup
    finds something with chance `ngram_found`, each token of which is right with chance `ngram_acceptance`. Where there
    are `recordings`, requests replay them in turn, and the laws are not used.
    """

    acceptance: Annotated[tuple[Probability, ...], Field(min_length=1)] = (0.7,)
    rejected: RankLaw = RankLaw()
    accepted: RankLaw = RankLaw()
    ngram_found: Probability = 0.0
    ngram_acceptance: Probability = 0.0
    recordings: tuple[Recording, ...] = ()

    def acceptance_at(self, index: int) -> float:
        """Return the chance of place `index` of a draft."""
        return self.acceptance[min(index, len(self.acceptance) - 1)]


class Fate:
    """What the verdicts on one request's drafts are, at every position and for every draft."""

    def __init__(self, behaviour: Behaviour, seed: int, request_id: int, draws: Draws) -> None:
        self._behaviour, self._seed, self._id, self._draws = behaviour, seed, request_id, draws
        self._blocks: dict[tuple[str, int], NDArray[np.float64]] = {}
        count = len(behaviour.recordings)
        self._recording = behaviour.recordings[request_id % count] if count else None
        self._start = generator(seed, "simulate.start", request_id).random(2)

    def ngram_length(self, position: int, wanted: int) -> int:
        """Return how many tokens prompt lookup proposes for this position on."""
        if self._recording is not None:
            ngrams = self._recording.ngrams
            return min(ngrams[position % len(ngrams)][0], wanted) if ngrams else 0
        return wanted if self._uniform("ngram", position) < self._behaviour.ngram_found else 0

    def verdict(self, source: str, num_drafted: int, position: int, round_: int) -> tuple[int, int]:
        """Return how many of the tokens drafted for this position on are kept, and the rank of the bonus token."""
        if self._recording is not None:
            return self._replayed(self._recording, source, num_drafted, position)
        if source == "ngram":
            chances = [self._behaviour.ngram_acceptance] * num_drafted
        else:
            chances = [self._behaviour.acceptance_at(index) for index in range(num_drafted)]
        if self._draws == "stratified":
            length, rank = (
                math.modf(start + round_ * step)[0] for start, step in zip(self._start, _STEPS, strict=True)
            )
            accepted = _inverted(chances, length)
        else:
            accepted = 0
            while accepted < num_drafted and self._uniform("token", position + accepted) < chances[accepted]:
                accepted += 1
            rank = self._uniform("rank", position + accepted)
        law = self._behaviour.accepted if accepted == num_drafted else self._behaviour.rejected
        return accepted, law.rank(float(rank))

    def _replayed(self, recording: Recording, source: str, num_drafted: int, position: int) -> tuple[int, int]:
        ranks, size = recording.ranks, len(recording.ranks)
        if source == "ngram" and num_drafted:
            accepted = min(recording.ngrams[position % len(recording.ngrams)][1], num_drafted)
            return accepted, min(ranks[(position + accepted) % size], BEYOND)
        accepted = 0
        while accepted < num_drafted and ranks[(position + accepted) % size] == 0:
            accepted += 1
        rank = ranks[(position + accepted) % size]
        # Behind a rejection the rejected token, the draft's own first choice, is not among the guesses.
        return accepted, min(rank - (accepted < num_drafted), BEYOND)

    def _uniform(self, purpose: str, position: int) -> float:
        block, offset = divmod(position, _BLOCK)
        key = (purpose, block)
        if key not in self._blocks:
            self._blocks[key] = generator(self._seed, f"simulate.{purpose}", self._id, block).random(_BLOCK)
        return float(self._blocks[key][offset])


def _inverted(chances: Sequence[float], uniform: float) -> int:
    """The accepted length whose place in the law a uniform number hits."""
    accepted, reach = 0, 1.0
    while accepted < len(chances) and uniform < (reach := reach * chances[accepted]):
        accepted += 1
    return accepted
