"""Prompt look-up: drafts copied from what followed the latest earlier occurrence of the last tokens.

Such a draft is chosen without chance, so its laws are point masses. The index grows by a few entries a token and is
never rebuilt; it gives what a scan of the whole text would (`speculate.propose_from_prompt`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from forethought.decode.draft import NO_DRAFT, Draft, Judged
from forethought.decode.request import Request
from forethought.decode.single.speculate import LONGEST_NGRAM, SHORTEST_NGRAM


class NgramIndex:
    """A text and where its n-grams last ended; `shortest` and `longest` bound their lengths."""

    def __init__(
        self, tokens: Iterable[int] = (), *, shortest: int = SHORTEST_NGRAM, longest: int = LONGEST_NGRAM
    ) -> None:
        self.tokens = list(tokens)
        self._num_indexed = 0
        self._ends: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in range(longest, shortest - 1, -1)}

    def extend(self, tokens: Iterable[int]) -> None:
        """Add tokens to the text; they are indexed when a continuation is first asked for."""
        self.tokens.extend(tokens)

    def continuation(self, k: int) -> list[int]:
        """Return at most k tokens that followed the latest earlier occurrence of the longest n-gram that has one."""
        tokens = self.tokens
        if k < 1:
            return []
        self._index(len(tokens) - 1)
        for length, ends in self._ends.items():
            end = ends.get(tuple(tokens[-length:])) if len(tokens) > length else None
            if end is not None:
                return tokens[end + 1 : end + 1 + k]
        return []

    def _index(self, stop: int) -> None:
        """Note the n-grams that end before position `stop`; the last of the text are what is looked up."""
        for length, ends in self._ends.items():
            for end in range(max(self._num_indexed, length - 1), stop):
                ends[tuple(self.tokens[end + 1 - length : end + 1])] = end
        self._num_indexed = max(self._num_indexed, stop)


class NgramSource:
    """The `DraftSource` of the method "ngram": every request drafts from its own text."""

    def __init__(
        self, num_speculative_tokens: int, *, shortest: int = SHORTEST_NGRAM, longest: int = LONGEST_NGRAM
    ) -> None:
        self.num_speculative_tokens = num_speculative_tokens
        self._shortest, self._longest = shortest, longest
        self._texts: dict[int, NgramIndex] = {}

    def start(self, request: Request) -> None:
        """Learn of a request."""
        self._texts[request.id] = NgramIndex(request.tokens, shortest=self._shortest, longest=self._longest)

    def collect(self, requests: Sequence[Request]) -> Mapping[int, Draft]:
        """Return the drafts of these requests; those whose text has no match go without."""
        drafts: dict[int, Draft] = {}
        for request in requests:
            text = self._texts.get(request.id)
            if text is None:
                continue
            tokens = text.continuation(min(self.num_speculative_tokens, request.remaining - 1))
            if tokens:
                drafts[request.id] = Draft(tokens, None, "ngram")
        return drafts

    def judged(self, request: Request, draft: Draft, verdict: Judged, kept: Sequence[int]) -> None:
        """Add what was committed to the request's text."""
        if request.id in self._texts:
            self._texts[request.id].extend(kept)

    def stop(self, request: Request) -> None:
        """Forget a request."""
        self._texts.pop(request.id, None)

    def close(self) -> None:
        """Forget all requests."""
        self._texts.clear()


class NoSource:
    """The `DraftSource` of plain decoding."""

    def start(self, request: Request) -> None:
        """Do nothing."""

    def collect(self, requests: Sequence[Request]) -> Mapping[int, Draft]:
        """Return no drafts."""
        return {}

    def judged(self, request: Request, draft: Draft, verdict: Judged, kept: Sequence[int]) -> None:
        """Do nothing."""

    def stop(self, request: Request) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def ngram_draft(text: NgramIndex, k: int) -> Draft:
    """Return a text's own continuation of at most k tokens as a draft, `NO_DRAFT` where there is none."""
    tokens = text.continuation(k)
    return Draft(tokens, None, "ngram") if tokens else NO_DRAFT
