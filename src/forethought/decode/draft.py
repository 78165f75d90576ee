"""What passes between the engine, its sources of drafts and its verifier, without saying how any of them works.

Shape suffixes: K drafted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from forethought.decode.law.constraint import Constraint
from forethought.decode.request import Request, Work

Source = Literal["cache", "draft", "ngram", "none"]


@dataclass(frozen=True)
class Draft:
    """Drafted tokens, the laws (K, V) that they were drawn from (None: they were chosen without chance), their source.

    "cache" was prepared for the verdict before it was known, "draft" drawn after it, "ngram" copied from the text.
    """

    tokens: list[int] = field(default_factory=list[int])
    laws_KV: Tensor | None = None
    source: Source = "none"

    def cut(self, length: int) -> Draft:
        """Return the leading `length` tokens with their laws."""
        laws_KV = None if self.laws_KV is None else self.laws_KV[:length]
        return self if length >= len(self.tokens) else Draft(self.tokens[:length], laws_KV, self.source)


NO_DRAFT = Draft()


@dataclass(frozen=True)
class TokenLogprobs:
    """The target's own log-probability of a token, its rank (1 is the likeliest), and the likeliest tokens'."""

    logprob: float
    rank: int
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Judged:
    """The verdict on one request's share of a step: `accepted` drafted tokens stay, `bonus` follows them.

    `bonus` is None where nothing was to be decided. `logprobs` has one entry for every kept token and the bonus, where
    the request asked for them. `error` says why this request, and it alone, cannot go on.
    """

    accepted: int = 0
    bonus: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    error: str | None = None


class DraftSource(Protocol):
    """Where drafts come from; it follows each request from `start` to `stop` and keeps no request alive."""

    def start(self, request: Request) -> None:
        """Learn of a request whose prompt is about to be computed (again, after a pre-emption: a new epoch)."""
        ...

    def collect(self, requests: Sequence[Request]) -> Mapping[int, Draft]:
        """Return the drafts at hand for these requests by id, waiting no longer than is worth it; others go without."""
        ...

    def judged(self, request: Request, draft: Draft, verdict: Judged, kept: Sequence[int]) -> None:
        """Learn of a verdict on `draft` (perhaps cut) as soon as it is known.

        `kept`, the accepted tokens and the bonus, are committed already: `request.tokens` ends with them, and
        `request.round` counts this verdict. Not called where the verdict leaves the request no room for another token.
        """
        ...

    def stop(self, request: Request) -> None:
        """Forget a request that has ended or was pre-empted."""
        ...

    def close(self) -> None:
        """Give back processes and memory."""
        ...


class Verifier(Protocol):
    """The target: computes what a step schedules and judges the drafts."""

    def run(self, works: Sequence[Work], drafts: Mapping[int, Draft]) -> list[Judged]:
        """Compute all shares in one pass and return a verdict for each; one request's failure touches no other."""
        ...

    def constrain(self, request_id: int, constraint: Constraint) -> None:
        """Hold a request to a constraint from its first token on."""
        ...

    def forget(self, request: Request) -> None:
        """Drop what is kept for a request that has ended."""
        ...
