"""Hashes of word n-grams of whole batches of text at once, and a compact set of such hashes.

A word is a run of letters, digits or non-ASCII bytes, case ignored for ASCII; each character of the scripts that are
written without spaces (three-byte UTF-8 from U+3000 on) is a word of its own. Its hash is polynomial over a random
value a byte, modulo 2^64, taken from prefix sums; an n-gram's hash is polynomial over its words' hashes.

Shape suffixes: B bytes, W words, G n-grams, D documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forethought.core import rng

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]

_BASE = np.uint64(0x9E3779B97F4A7C15)
_NGRAM_BASE = np.uint64(0xD1342543DE82EF95)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_BLOCK = 1 << 16
_MIN_TABLE_BITS = 16
_MAX_TABLE_BITS = 30
_TABLE_ROOM = 16


def _inverse(value: int) -> int:
    return pow(value, -1, 1 << 64)


def _powers(base: int, count: int) -> Hashes:
    steps = np.full(count, base % (1 << 64), dtype=np.uint64)
    steps[0] = 1
    return np.cumprod(steps, dtype=np.uint64)


def _byte_values() -> Hashes:
    values = rng.generator(0, "data.ngrams").integers(1, 2**64 - 1, size=256, dtype=np.uint64)
    values[ord("A") : ord("Z") + 1] = values[ord("a") : ord("z") + 1]
    return values


_POWERS = _powers(int(_BASE), _BLOCK + 1)
_INVERSE_POWERS = _powers(_inverse(int(_BASE)), _BLOCK + 1)
_VALUES = _byte_values()
_IS_WORD = np.array([chr(b).isalnum() if b < 128 else True for b in range(256)])


def ngram_hashes(texts: Sequence[bytes], length: int) -> tuple[Hashes, Indices]:
    """Return the hash of every word n-gram inside a document and the number of the document it lies in.

    Shapes: G uint64 and G int64, in reading order; no n-gram crosses from one document to the next.
    """
    words_W, document_W = word_hashes(texts)
    count = len(words_W) - length + 1
    if count <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    hashes_G = words_W[:count].copy()
    for offset in range(1, length):
        hashes_G *= _NGRAM_BASE
        hashes_G += words_W[offset : offset + count]
    hashes_G ^= hashes_G >> np.uint64(31)
    hashes_G *= _MIX
    hashes_G ^= hashes_G >> np.uint64(29)
    inside_G = document_W[:count] == document_W[length - 1 :]
    return hashes_G[inside_G], document_W[:count][inside_G]


def word_hashes(texts: Sequence[bytes]) -> tuple[Hashes, Indices]:
    """Return the hash of every word of UTF-8 texts and the number of the text it stands in (both of shape W)."""
    joined = np.frombuffer(b"\n".join(texts), dtype=np.uint8)
    starts_W, ends_W = _word_bounds(joined)
    ends_D = np.cumsum(np.array([len(text) + 1 for text in texts], dtype=np.int64))
    document_W = np.searchsorted(ends_D, starts_W, side="right").astype(np.int64)
    return _hash_spans(joined, starts_W, ends_W), document_W


def _word_bounds(joined: NDArray[np.uint8]) -> tuple[Indices, Indices]:
    word_B = _IS_WORD[joined]
    alone_B = np.zeros(len(joined), dtype=bool)
    if len(joined) and joined.max() >= 0x80:
        _mark_general_punctuation(joined, word_B)
        alone_B = (joined >= 0xE3) & (joined <= 0xED)
    before_B = np.concatenate(([False], word_B[:-1]))
    after_alone_B = np.zeros(len(joined), dtype=bool)
    after_alone_B[3:] = alone_B[:-3]
    starts_W = np.flatnonzero(word_B & (~before_B | alone_B | after_alone_B))
    breaks = np.append(np.flatnonzero(~word_B & before_B), len(joined))
    next_break_W = breaks[np.searchsorted(breaks, starts_W, side="right")] if len(starts_W) else starts_W
    following_W = np.append(starts_W[1:], len(joined))
    return starts_W, np.minimum(next_break_W, following_W)


def _mark_general_punctuation(joined: NDArray[np.uint8], word_B: NDArray[np.bool_]) -> None:
    # U+2000 to U+207F holds the typographic quotes and dashes, which must not glue two words together.
    leads = np.flatnonzero(joined[:-2] == 0xE2) if len(joined) > 2 else np.empty(0, np.int64)
    leads = leads[(joined[leads + 1] == 0x80) | (joined[leads + 1] == 0x81)]
    for offset in range(3):
        word_B[leads + offset] = False


def _hash_spans(joined: NDArray[np.uint8], starts_W: Indices, ends_W: Indices) -> Hashes:
    # Blocks keep the prefix sums in the cache; a word longer than a block is hashed by its first block only.
    hashes_W = np.empty(len(starts_W), dtype=np.uint64)
    first = 0
    while first < len(starts_W):
        origin = int(starts_W[first])
        last = max(first + 1, int(np.searchsorted(ends_W, origin + _BLOCK, side="right")))
        block = joined[origin : min(int(ends_W[last - 1]), origin + _BLOCK)]
        sums = np.zeros(len(block) + 1, dtype=np.uint64)
        np.cumsum(_VALUES[block] * _POWERS[: len(block)], out=sums[1:])
        left = starts_W[first:last] - origin
        right = np.minimum(ends_W[first:last] - origin, len(block))
        hashes_W[first:last] = (sums[right] - sums[left]) * _INVERSE_POWERS[left]
        first = last
    return hashes_W


class HashSet:
    """A fixed set of hashes: a bit table turns most strangers away, a binary search settles the rest exactly."""

    def __init__(self, hashes_G: Hashes) -> None:
        self.values = np.unique(hashes_G)
        wanted = max(len(self.values), 1) * _TABLE_ROOM
        bits = min(max(wanted.bit_length(), _MIN_TABLE_BITS), _MAX_TABLE_BITS)
        self._shift = np.uint64(64 - bits)
        slots = self.values >> self._shift
        self._table = np.zeros(1 << (bits - 3), dtype=np.uint8)
        np.bitwise_or.at(self._table, slots >> np.uint64(3), np.uint8(1) << (slots & np.uint64(7)).astype(np.uint8))

    def positions(self, hashes_G: Hashes) -> Indices:
        """Return the positions in `values` of those given hashes that are in the set, in no particular order."""
        slots = hashes_G >> self._shift
        bit = np.right_shift(self._table[slots >> np.uint64(3)], (slots & np.uint64(7)).astype(np.uint8)) & np.uint8(1)
        likely = hashes_G[bit.astype(bool)]
        if not len(likely) or not len(self.values):
            return np.empty(0, np.int64)
        at = np.minimum(np.searchsorted(self.values, likely), len(self.values) - 1)
        return at[self.values[at] == likely]
