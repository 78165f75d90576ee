"""The draft model's own copy of a request: its text, and where the keys and values of that text lie.

Shape suffixes: N rows, S sequences, P pages of a sequence, E extra slots, M rows whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forethought.decode.batching.pages import PageManager
from forethought.decode.law.chance import Chance
from forethought.decode.law.sampling import SamplingParams
from forethought.decode.wire.protocol import Prefill, extend_hash
from forethought.nn.rows import Int32, Rows

_SPARE = 64


class Share(NamedTuple):
    """What one request computes in a pass; the logits of its last `num_wanted` rows are wanted."""

    pages_P: Int32
    tokens_N: Int32
    positions_N: Int32
    slots_N: Int32
    visible_N: Int32
    num_wanted: int
    extra_NE: Int32 | None = None


class Trunk:
    """A text of `length` committed tokens and `num_drafted` behind them.

    The keys and values of the leading `num_written` tokens lie in its pages. `limit` is the longest text that the
    model and the request allow.
    """

    def __init__(self, message: Prefill, pages: PageManager, max_positions: int) -> None:
        tag, sampling = message.tag, message.sampling
        self.request, self.epoch, self.round, self.prefix_hash = tag
        self.params = SamplingParams(
            temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p
        )
        self.is_greedy = sampling.temperature == 0.0
        self.chance = Chance(sampling.seed)
        self.max_length, self.max_positions = message.max_length, max_positions
        self.limit = min(message.max_length, max_positions)
        self.length, self.num_drafted = len(message.tokens_T), 0
        self.text = np.zeros(self.length + _SPARE, dtype=np.int32)
        self.text[: self.length] = message.tokens_T
        self._manager = pages
        self.pages: list[int] = []
        self.pages_P, self.slots = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32)
        self.num_written = self._num_registered = self._reuse()

    @property
    def is_full(self) -> bool:
        """Whether the text has reached its limit, so that nothing can be drafted behind it."""
        return self.length >= self.limit

    def commit(self, tokens: Sequence[int]) -> int:
        """Put committed tokens in the drafted ones' place; return how many of them agree with these from the start."""
        start, matched = self.length, 0
        for token, drafted in zip(tokens, self.drafted(), strict=False):
            if token != drafted:
                break
            matched += 1
        # What was written for a token that did not stay is gone; what agrees need not be written again.
        self.num_written = min(self.num_written, start + matched)
        self._room(start + len(tokens))
        self.text[start : start + len(tokens)] = tokens
        self.length += len(tokens)
        self.num_drafted = 0
        self.round += 1
        self.prefix_hash = extend_hash(self.prefix_hash, tokens)
        return matched

    def propose(self, tokens: Sequence[int]) -> None:
        """Put a draft behind the committed tokens; what is written of another one does not count as written."""
        agreed = 0
        for token, drafted in zip(tokens, self.drafted(), strict=False):
            if token != drafted:
                break
            agreed += 1
        self.num_written = min(self.num_written, self.length + agreed)
        self._room(self.length + len(tokens))
        self.text[self.length : self.length + len(tokens)] = tokens
        self.num_drafted = len(tokens)

    def push(self, tokens: Sequence[int]) -> None:
        """Put more drafted tokens behind the others."""
        end = self.length + self.num_drafted
        self._room(end + len(tokens))
        self.text[end : end + len(tokens)] = tokens
        self.num_drafted += len(tokens)

    def drafted(self) -> list[int]:
        """Return the drafted tokens."""
        return self.text[self.length : self.length + self.num_drafted].tolist()

    def reserve(self, length: int) -> bool:
        """See to pages for the leading `length` tokens; return whether there are enough."""
        if len(self.slots) >= length:
            return True
        if not self._manager.extend(self.pages, length):
            return False
        self._map_pages()
        return True

    def share(self, start: int, stop: int, num_wanted: int, counting: Int32) -> Share:
        """Return the pass over tokens `start` to `stop`, which reserved pages hold; `counting` is 0, 1, 2, ..."""
        return Share(
            self.pages_P,
            self.text[start:stop],
            counting[start:stop],
            self.slots[start:stop],
            counting[start + 1 : stop + 1],
            num_wanted,
        )

    def release(self) -> None:
        """Give the pages back; full ones of committed text can be matched until they are needed otherwise."""
        self.register(min(self.num_written, self.length - 1))
        self._manager.release(self.pages)
        self._map_pages()
        self.num_written = self._num_registered = 0

    def register(self, stop: int) -> None:
        """Let later requests match the pages filled by the leading `stop` tokens; nothing may write there again."""
        if stop // self._manager.page_size > self._num_registered // self._manager.page_size:
            self._manager.register(self.pages, self.text[:stop].tolist(), self._num_registered, stop)
            self._num_registered = stop

    def _reuse(self) -> int:
        """Take the known pages of the text's beginning and return how many tokens they hold."""
        if self.length > self.limit:
            return 0
        self.pages = self._manager.share(self._manager.match(self.text[: self.length].tolist()))
        self._map_pages()
        return len(self.slots)

    def _map_pages(self) -> None:
        size = self._manager.page_size
        self.pages_P = np.array(self.pages, dtype=np.int32)
        self.slots = (self.pages_P[:, None] * size + np.arange(size, dtype=np.int32)).reshape(-1)

    def _room(self, length: int) -> None:
        if length > len(self.text):
            grown = np.zeros(2 * length, dtype=np.int32)
            grown[: len(self.text)] = self.text
            self.text = grown


def rows_of(shares: Sequence[Share]) -> Rows:
    """Return one pass over the shares of several requests, one behind the other."""
    if len(shares) == 1:
        return _rows_of_one(shares[0])
    counts = [len(share.tokens_N) for share in shares]
    width = max(len(share.pages_P) for share in shares)
    pages_SP = np.zeros((len(shares), width), dtype=np.int32)
    logits: list[NDArray[np.int32]] = []
    end = 0
    for place, share in enumerate(shares):
        pages_SP[place, : len(share.pages_P)] = share.pages_P
        end += counts[place]
        logits.append(np.arange(end - share.num_wanted, end, dtype=np.int32))
    return Rows(
        tokens_N=np.concatenate([share.tokens_N for share in shares]),
        positions_N=np.concatenate([share.positions_N for share in shares]),
        slots_N=np.concatenate([share.slots_N for share in shares]),
        sequence_N=np.repeat(np.arange(len(shares), dtype=np.int32), counts),
        visible_N=np.concatenate([share.visible_N for share in shares]),
        pages_SP=pages_SP,
        logits_M=np.concatenate(logits),
        extra_NE=_extras(shares, counts),
    )


def _rows_of_one(share: Share) -> Rows:
    count = len(share.tokens_N)
    return Rows(
        tokens_N=share.tokens_N,
        positions_N=share.positions_N,
        slots_N=share.slots_N,
        sequence_N=np.zeros(count, dtype=np.int32),
        visible_N=share.visible_N,
        pages_SP=share.pages_P[None],
        logits_M=np.arange(count - share.num_wanted, count, dtype=np.int32),
        extra_NE=None if share.extra_NE is None else np.ascontiguousarray(share.extra_NE),
    )


def _extras(shares: Sequence[Share], counts: Sequence[int]) -> Int32 | None:
    width = max((share.extra_NE.shape[1] for share in shares if share.extra_NE is not None), default=0)
    if width == 0:
        return None
    extra_NE = np.full((sum(counts), width), -1, dtype=np.int32)
    end = 0
    for share, count in zip(shares, counts, strict=True):
        if share.extra_NE is not None:
            extra_NE[end : end + count, : share.extra_NE.shape[1]] = share.extra_NE
        end += count
    return extra_NE
