"""What prompt look-up would have brought, had it drafted: learned beside a draft model, at no cost in rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from forethought.decode.sources.ngram import NgramIndex

LENGTH = 8


@dataclass(frozen=True, slots=True)
class Shadow:
    """A proposal that was never made: its length (0 where nothing was found), and how many of its tokens were right.

    `after_miss`: the round in which it would have come answered a verdict that was not foreseen.
    """

    num_drafted: int
    accepted: int
    after_miss: bool


@dataclass(slots=True)
class ShadowCaster:
    """Holds one proposal at a time against what is committed, over as many rounds as it takes until it fails or ends.

    Judged within its own round alone it would look too good: a round commits much where the text is easy.
    """

    _proposed: list[int] = field(default_factory=list[int])
    _matched: int = 0
    _after_miss: bool = False

    def commit(self, text: NgramIndex, kept: Sequence[int], room: int, *, after_miss: bool) -> Shadow | None:
        """Return what became clear with these tokens, which are not yet part of the text; None where nothing did."""
        if not self._proposed:
            self._proposed = text.continuation(min(LENGTH, room))
            self._matched, self._after_miss = 0, after_miss
            if not self._proposed:
                return Shadow(0, 0, after_miss) if room > 0 else None
        for token in kept:
            if token != self._proposed[self._matched]:
                return self._end()
            self._matched += 1
            if self._matched == len(self._proposed):
                return self._end()
        return None

    def _end(self) -> Shadow:
        shadow = Shadow(len(self._proposed), self._matched, self._after_miss)
        self._proposed = []
        return shadow
