"""What the draft's side has done, as counters that fit a message of fixed layout."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import InputError
from forethought.decode.wire.protocol import MAX_TOKENS, Stats

_LENGTHS = MAX_TOKENS + 1


def _by_length() -> NDArray[np.int64]:
    return np.zeros(_LENGTHS, dtype=np.int64)


@dataclass
class DraftAccounts:
    """Counts of verdicts, tokens and passes, and seconds spent; every field only grows.

    hits and misses are the verdicts that were foreseen and not, in all, by accepted length, and after a verdict that
    was not foreseen; cut_short the hits whose branch was not as long as wanted. ranks_rejected and ranks_accepted count
    the bonus token's rank among the guesses after a rejection and after a fully accepted draft, the last place all
    beyond. prepared counts tokens of branches, used those of them that were sent; drafted those that were drawn and
    copied those that were looked up after the verdict. stale, resyncs, repeated and malformed are frames that were
    about another state of their request, that made the whole text be asked for, that came twice, or that were none.
    Seconds: of glue passes, of tree passes, of drafts made on the spot, of reading texts; complete counts trees that
    were finished and preparing the seconds from an answer to the end of such a tree's last pass.
    """

    outcomes: int = 0
    hits: int = 0
    misses: int = 0
    hits_after_miss: int = 0
    misses_after_miss: int = 0
    cut_short: int = 0
    unanswered: int = 0
    prepared: int = 0
    used: int = 0
    drafted: int = 0
    copied: int = 0
    read: int = 0
    glue_passes: int = 0
    tree_passes: int = 0
    complete: int = 0
    stale: int = 0
    resyncs: int = 0
    repeated: int = 0
    malformed: int = 0
    out_of_pages: int = 0
    evicted: int = 0
    hits_by_length: NDArray[np.int64] = field(default_factory=_by_length)
    misses_by_length: NDArray[np.int64] = field(default_factory=_by_length)
    ranks_rejected: NDArray[np.int64] = field(default_factory=_by_length)
    ranks_accepted: NDArray[np.int64] = field(default_factory=_by_length)
    glue_seconds: float = 0.0
    tree_seconds: float = 0.0
    draft_seconds: float = 0.0
    read_seconds: float = 0.0
    preparing_seconds: float = 0.0

    def to_message(self) -> Stats:
        """Return the counts and seconds in the order of the fields."""
        counts = [np.atleast_1d(getattr(self, name)) for name in _COUNTS]
        return Stats(np.concatenate(counts).astype(np.int64), np.array([getattr(self, name) for name in _SECONDS]))

    @classmethod
    def from_message(cls, message: Stats) -> DraftAccounts:
        """Return the accounts that a message carries.

        Raises:
            InputError: the message has another number of fields.
        """
        made, at = cls(), 0
        size = sum(np.atleast_1d(getattr(made, name)).size for name in _COUNTS)
        if len(message.counts) != size or len(message.seconds) != len(_SECONDS):
            raise InputError(
                f"accounts of {len(message.counts)} counts and {len(message.seconds)} seconds; this release has {size} "
                f"and {len(_SECONDS)}, so run one release on both sides"
            )
        for name in _COUNTS:
            width = np.atleast_1d(getattr(made, name)).size
            values = message.counts[at : at + width]
            setattr(made, name, values.copy() if width > 1 else int(values[0]))
            at += width
        for name, value in zip(_SECONDS, message.seconds, strict=True):
            setattr(made, name, float(value))
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with the share of verdicts that were foreseen."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
        verdicts, after = self.hits + self.misses, self.hits_after_miss + self.misses_after_miss
        plain["hit_rate"] = self.hits / verdicts if verdicts else None
        plain["hit_rate_after_miss"] = self.hits_after_miss / after if after else None
        plain["mean_preparing_seconds"] = self.preparing_seconds / self.complete if self.complete else None
        return plain


_COUNTS = [each.name for each in fields(DraftAccounts) if not each.name.endswith("_seconds")]
_SECONDS = [each.name for each in fields(DraftAccounts) if each.name.endswith("_seconds")]
