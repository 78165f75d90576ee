"""Fast encoding of much text: each distinct chunk of white space and the word behind it goes through BPE once.

GPT-2's pre-tokenizer, and those made after it for Llama 3 and Qwen 2, never join a character that is not white space
with a space that follows it. Between the two a text can therefore be cut without changing any id, and text is made of
few distinct chunks.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

Ids = NDArray[np.uint32]

_MAX_CHUNKS = 400_000
_MAX_CACHED_TOKENS = 8 << 20
_PART_CHARACTERS = 1 << 18
_MAX_PART_CHARACTERS = 1 << 20
_WINDOW = 1 << 12
# Python counts U+001C to U+001F as white space, the pre-tokenizers do not.
_SPACE, _OTHER = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
_AFTER_GPT2 = re.compile(f"{_SPACE}*{_OTHER}+|{_SPACE}+")
# The later ones join punctuation with the line ends behind it, so there a cut stands before a plain space only.
_AFTER_LATER = re.compile(f"(?<={_OTHER})(?= )")
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_KNOWN_SPLITS = frozenset(_CONTRACTIONS + digits + _REST for digits in (r"\p{N}", r"\p{N}{1,3}"))


def can_cut(facts: dict[str, Any]) -> bool:
    """Say, from a tokenizer's JSON, whether its texts may be cut between a word and the space behind it."""
    added = facts.get("added_tokens") or []
    plain = all(token.get("special") or not _has_space(token.get("content", " ")) for token in added)
    deterministic = not (facts.get("model") or {}).get("dropout")
    return plain and deterministic and facts.get("normalizer") is None and is_byte_level(facts)


def is_byte_level(facts: dict[str, Any]) -> bool:
    """Say whether a tokenizer's JSON describes GPT-2's pre-tokenizer over bytes, or the one of Llama 3 or Qwen 2."""
    pre = facts.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers") or [pre]
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return False
    if len(steps) == 1:
        return bool(last.get("use_regex", True))
    pattern = (steps[0].get("pattern") or {}).get("Regex")
    isolated = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
    return len(steps) == 2 and not last.get("use_regex", True) and isolated and pattern in _KNOWN_SPLITS


def is_gpt2(facts: dict[str, Any]) -> bool:
    """Say whether a byte-level tokenizer has GPT-2's own pre-tokenizer."""
    return (facts.get("pre_tokenizer") or {}).get("type") == "ByteLevel"


def _has_space(text: str) -> bool:
    return not text or any(character.isspace() for character in text)


def _safe_end(text: str, start: int, length: int) -> int:
    limit = min(start + max(length, _MAX_PART_CHARACTERS), len(text))
    at = max(start + 1, start + length - _WINDOW)
    while (at := text.find(" ", at, limit)) >= 0:
        before = text[at - 1]
        if before.isascii() and before.isalpha():
            return at
        at += 1
    return limit


def safe_parts(text: str, length: int) -> Iterator[str]:
    """Cut a text into parts of about a length, each cut between an ASCII letter and a space; they join to the text.

    A part that has no such place within 2**20 characters is cut where it stands.
    """
    start = 0
    while len(text) - start > length:
        end = _safe_end(text, start, length)
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]


class ChunkEncoder:
    """Encodes texts with a bounded memory of the chunks met before; one belongs to one thread."""

    def __init__(self, inner: tokenizers.Tokenizer, *, gpt2: bool) -> None:
        self._inner = inner
        self._chunks = _AFTER_GPT2.findall if gpt2 else _AFTER_LATER.split
        self._forget()

    def encode(self, text: str) -> Ids:
        """Return the ids of a text, equal to those of the plain encoder."""
        parts = [self._encode_part(part) for part in safe_parts(text, _PART_CHARACTERS)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _encode_part(self, text: str) -> Ids:
        if not text:
            return np.empty(0, np.uint32)
        chunks = self._chunks(text)
        if len(self._numbers) > _MAX_CHUNKS or len(self._tokens) > _MAX_CACHED_TOKENS:
            self._forget()
        known = map(self._numbers.get, chunks, itertools.repeat(-1))
        numbers = np.fromiter(known, dtype=np.int64, count=len(chunks))
        missing = np.flatnonzero(numbers < 0)
        if len(missing):
            self._learn(list(dict.fromkeys(chunks[at] for at in missing)))
            numbers[missing] = [self._numbers[chunks[at]] for at in missing]
        return self._joined(numbers)

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {}
        self._tokens = array("I")
        self._bounds = array("q", [0])

    def _learn(self, chunks: list[str]) -> None:
        encoded = self._inner.encode_batch_fast(chunks, add_special_tokens=False)
        for chunk, encoding in zip(chunks, encoded, strict=True):
            self._numbers[chunk] = len(self._bounds) - 1
            self._tokens.extend(encoding.ids)
            self._bounds.append(len(self._tokens))

    def _joined(self, numbers: NDArray[np.int64]) -> Ids:
        bounds = np.frombuffer(self._bounds, dtype=np.int64)
        first = bounds[numbers]
        counts = bounds[numbers + 1] - first
        before = np.cumsum(counts) - counts
        positions = np.arange(int(counts.sum())) + np.repeat(first - before, counts)
        return np.frombuffer(self._tokens, dtype=np.uint32)[positions]
