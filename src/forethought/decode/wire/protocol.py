"""What target and draft have to say to each other; `messages` puts it into frames.

Every message about a request names it, its epoch (pre-emptions) and round (verdicts) and a rolling hash of the
committed tokens, so that one that came late, twice or out of order is known as such.

Shape suffixes: K drafted tokens, V vocabulary, T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

VERSION = 1
MAX_TOKENS, MAX_BUDGET, MAX_TEXT, MAX_VOCABULARY = 32, 256, 1 << 20, 1 << 24
BEYOND = -2
"""The rank of a token that is not among the guesses."""

EMPTY_HASH = 0xCBF29CE484222325
_WORD = (1 << 64) - 1


class Kind(IntEnum):
    """What a frame is."""

    HELLO, PREFILL, OUTCOME, SPEC, FREE, STATS, SHUTDOWN, ERROR = range(1, 9)


class Origin(IntEnum):
    """Where a draft came from: no draft, prepared before the verdict, drawn after it, copied from the text."""

    NONE, CACHE, DRAFT, NGRAM = range(4)


class Fallback(IntEnum):
    """What answers a verdict that was not foreseen; the values are those of the matching origins."""

    NONE, DRAFT, NGRAM = 0, 2, 3


class Tag(NamedTuple):
    """Which state of which request a message is about: `round` verdicts, after which the text hashes to this."""

    request: int = 0
    epoch: int = 0
    round: int = 0
    prefix_hash: int = EMPTY_HASH


class Spread(IntEnum):
    """How foreseen verdicts are spread over accepted lengths; the names are those of `FanOut`."""

    UNIFORM, GEOMETRIC, EMPIRICAL = range(3)


class Demand(NamedTuple):
    """What the target wants next: `wanted` tokens, and then `budget` verdicts foreseen on them.

    A verdict that was not foreseen is answered by `fallback`, the model's with at most `jit_length` tokens.
    """

    wanted: int
    budget: int = 0
    fallback: Fallback = Fallback.DRAFT
    spread: Spread = Spread.EMPIRICAL
    jit_length: int = MAX_TOKENS


class DraftSampling(NamedTuple):
    """The fields of the sampling parameters that the draft's law depends on; temperature is the draft's own."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0


@dataclass(slots=True)
class Hello:
    """Who speaks: both sides must have one vocabulary and one tokenizer.

    `tokenizer_digest` has 32 bytes, all of them 0 where it is not known."""

    vocabulary_size: int
    tokenizer_digest: bytes = bytes(32)
    max_tokens: int = MAX_TOKENS
    max_budget: int = MAX_BUDGET
    dtype: str = "float32"
    version: int = VERSION


@dataclass(slots=True)
class Prefill:
    """A request's text (T,), from which the draft's state is built anew."""

    tag: Tag
    tokens_T: NDArray[np.int32]
    sampling: DraftSampling
    max_length: int
    demand: Demand


@dataclass(slots=True)
class Outcome:
    """A verdict: `tokens` were committed; `accepted` of them were the answer's own, -1 if another draft was judged."""

    tag: Tag
    accepted: int
    tokens: list[int]
    demand: Demand


@dataclass(slots=True)
class Spec:
    """An answer: drafted tokens and the laws (K, V) that they were drawn from (None: they were chosen without chance).

    `resync` asks for the whole text again. `ready` is the depth that the tree had reached when the verdict came,
    `complete` whether that was all of it; the seconds are those of its glue pass and its depths. `rank` is the place of
    the verdict's bonus token among the guesses, BEYOND where it was not among them, None where that tells nothing.
    """

    tag: Tag
    origin: Origin = Origin.NONE
    tokens: list[int] = field(default_factory=list[int])
    laws_KV: NDArray[np.float32] | None = None
    resync: bool = False
    complete: bool = False
    ready: int = 0
    glue_seconds: float = 0.0
    tree_seconds: float = 0.0
    rank: int | None = None


@dataclass(slots=True)
class Free:
    """A request has ended or was pre-empted."""

    tag: Tag


@dataclass(slots=True)
class Stats:
    """The draft side's accounts, or a question for them: whole counts and seconds, in the order of the reader's own."""

    counts: NDArray[np.int64]
    seconds: NDArray[np.float64]


@dataclass(slots=True)
class Shutdown:
    """The other side is to end."""


@dataclass(slots=True)
class Failure:
    """The other side could not make sense of a frame, or cannot go on."""

    text: str


Message: TypeAlias = Hello | Prefill | Outcome | Spec | Free | Stats | Shutdown | Failure


def extend_hash(prefix_hash: int, tokens: Iterable[int]) -> int:
    """Return the rolling 64-bit hash of a prefix with further tokens behind it."""
    for token in tokens:
        mixed = ((prefix_hash ^ (token + 1)) * 0x9E3779B97F4A7C15) & _WORD
        prefix_hash = mixed ^ (mixed >> 29)
    return prefix_hash


def disagreement(target: Hello, draft: Hello) -> str:
    """Return what two sides would have to agree on and do not, an empty text where they agree."""
    if target.version != draft.version:
        return f"the target's side has protocol version {target.version}, the draft's {draft.version}; run one release"
    if target.vocabulary_size != draft.vocabulary_size:
        return (
            f"the draft has {draft.vocabulary_size} tokens and the target {target.vocabulary_size}; "
            "give a draft with the target's tokenizer"
        )
    digests = target.tokenizer_digest, draft.tokenizer_digest
    if digests[0] != digests[1] and all(map(any, digests)):
        return "draft and target have different tokenizers; give a draft with the target's"
    return ""
