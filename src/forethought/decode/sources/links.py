"""What the target's side knows of a draft that lives elsewhere, and of each request that it was told of.

Shape suffixes: K drafted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.decode.draft import Draft
from forethought.decode.sources.ngram import NgramIndex
from forethought.decode.sources.shadow import Shadow, ShadowCaster
from forethought.decode.wire.protocol import DraftSampling, Spec, Tag, extend_hash

# How far the sum of a law in single precision may be from 1: far above its rounding, far below any damage.
_LAW_TOLERANCE = 1e-3


@dataclass
class Health:
    """Whether the draft is there, why not, and the frames that did not come as they should.

    late: answers not there in time; stale: answers about another state of their request; resyncs: texts sent anew at
    the draft's wish; malformed: frames that made no sense to either side; unsent: frames there was no room for.
    """

    alive: bool = True
    warning: str | None = None
    late: int = 0
    stale: int = 0
    resyncs: int = 0
    malformed: int = 0
    unsent: int = 0


class Observer(Protocol):
    """Who learns from verdicts what the engine's rounds do not tell."""

    def observe_rank(self, source: str, num_drafted: int, accepted: int, rank: int | None) -> None:
        """Learn the place of a bonus token among the draft's guesses, None where it was not among them."""
        ...

    def observe_shadow(self, shadow: Shadow) -> None:
        """Learn what prompt look-up would have proposed and how much of it was then committed."""
        ...


@dataclass(eq=False, slots=True)
class Link:
    """What is known here of one request: its text, the state of it, and the answer to the last verdict."""

    request: int
    epoch: int
    text: NgramIndex
    max_length: int
    sampling: DraftSampling
    prefix_hash: int
    round: int = 0
    is_awaited: bool = False
    must_resync: bool = False
    spec: Spec | None = None
    given: Draft | None = None
    laws_KV: torch.Tensor | None = None
    judged: tuple[str, int, int] = ("none", 0, 0)
    caster: ShadowCaster | None = None
    held: list[int] = field(default_factory=list[int])

    @property
    def tag(self) -> Tag:
        """The state that the request is in."""
        return Tag(self.request, self.epoch, self.round, self.prefix_hash)

    @property
    def room(self) -> int:
        """The most drafted tokens that can be of use: the target adds one to every draft."""
        return self.max_length - len(self.text.tokens) - 1

    def commit(self, tokens: Sequence[int]) -> None:
        """Add committed tokens to the text, to be told of; what was said of the state before is done with."""
        self.text.extend(tokens)
        self.held.extend(tokens)
        self.spec = self.given = None

    def tell(self) -> list[int]:
        """Return the tokens that the other side is to be told of, the state being what it is with them."""
        told, self.held = self.held, []
        self.round += 1
        self.prefix_hash = extend_hash(self.prefix_hash, told)
        return told

    def is_own(self, draft: Draft) -> bool:
        """Whether a draft that was judged, perhaps cut, is the answer of the other side."""
        if self.spec is None or self.given is None:
            return False
        return draft.tokens == self.spec.tokens[: len(draft.tokens)] and bool(draft.tokens or not self.given.tokens)


def law_rows(laws_KV: NDArray[np.float32], vocabulary_size: int) -> torch.Tensor | None:
    """Return laws in double precision that sum to 1, or None where they are none."""
    if laws_KV.shape[1] != vocabulary_size or not bool((laws_KV >= 0.0).all()):
        return None
    exact_KV = torch.from_numpy(laws_KV.astype(np.float64))
    total_K1 = exact_KV.sum(dim=-1, keepdim=True)
    if not bool(((total_K1 - 1.0).abs() < _LAW_TOLERANCE).all()):
        return None
    return exact_KV / total_K1
