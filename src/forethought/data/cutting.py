"""Cutting long texts: into documents at paragraph ends, and into parts of bounded size between words."""

from __future__ import annotations

from collections.abc import Iterator

_BOUNDARIES = ("\n\n", "\r\n\r\n", "\n", " ")
_NEAR_BYTES = 1 << 16
_FIRST_PRINTABLE, _LAST_PRINTABLE = 0x21, 0x7E


def cut(text: str, length: int) -> Iterator[str]:
    """Cut a text into pieces of at most a length, at paragraph ends where there are any; they join to the text."""
    start = 0
    while len(text) - start > length:
        end = _cut_point(text, start, length)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def byte_parts(data: bytes, max_bytes: int) -> Iterator[bytes]:
    """Cut UTF-8 bytes into parts of at most a size, never inside a character.

    The cut stands before a space that follows a word, where no token's id changes, unless there is none nearby.
    """
    start = 0
    while len(data) - start > max_bytes:
        limit = start + max_bytes
        end = _safe_byte_end(data, max(start + 1, limit - _NEAR_BYTES), limit)
        if end < 0:
            end = limit
            while end > start + 1 and data[end] & 0xC0 == 0x80:
                end -= 1
        yield data[start:end]
        start = end
    yield data[start:]


def _cut_point(text: str, start: int, length: int) -> int:
    for boundary in _BOUNDARIES:
        at = text.rfind(boundary, start + length // 2, start + length)
        if at >= 0:
            return at + len(boundary)
    return start + length


def _safe_byte_end(data: bytes, low: int, high: int) -> int:
    # Behind a printable ASCII character no pre-tokenizer joins the space to what precedes it, so no id changes.
    end = data.rfind(b" ", low, high)
    while end >= 0 and not _FIRST_PRINTABLE <= data[end - 1] <= _LAST_PRINTABLE:
        end = data.rfind(b" ", low, end)
    return end
