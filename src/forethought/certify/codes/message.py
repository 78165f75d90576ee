"""The message: one byte string that holds the recipe, the codebooks and the coded symbols, and nothing else.

Layout, little-endian: 8 bytes of magic; u32 length and the recipe in canonical JSON; u16 number of segments; for each
segment u8 kind of codebook (0 table, 1 grid), u16 levels, u32 symbols, the fp16 numbers of the codebook, u32 length and
the stream; u32 number of buffer values and these in fp16. Every message has exactly one encoding, and a decoder refuses
any other, so no byte can be changed without changing what is decoded.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forethought.certify.codes.codebook import (
    HALF_BITS,
    MAX_LEVELS,
    Codebook,
    GridCodebook,
    TableCodebook,
)
from forethought.certify.codes.kt import kt_bits
from forethought.certify.codes.stream import MAX_SYMBOLS, decode_symbols, encode_symbols
from forethought.certify.ledger import BitLedger
from forethought.core.errors import ArtefactError, InputError

MAGIC = b"FTCERT1\n"
MAX_RECIPE_BYTES = 1 << 16
MAX_SEGMENTS = 1 << 14
MAX_MESSAGE_BYTES = 64 << 20


@dataclass(frozen=True)
class Segment:
    """Symbols [d] that share a codebook and an adaptive code."""

    symbols: np.ndarray
    codebook: Codebook

    @property
    def values(self) -> np.ndarray:
        """The numbers that the symbols mean, in float64."""
        return self.codebook.values[self.symbols]

    @property
    def bits(self) -> float:
        """What the symbols cost under the adaptive code, in bits; the codebook is not in it."""
        return kt_bits(np.bincount(self.symbols, minlength=self.codebook.num_levels))


@dataclass(frozen=True)
class Message:
    """A decoded message: the recipe as JSON values, the segments and the buffers (fp16 numbers in float64)."""

    recipe: Mapping[str, Any]
    segments: tuple[Segment, ...]
    buffers: np.ndarray

    @property
    def numbers(self) -> np.ndarray:
        """The decoded numbers of all segments, end to end."""
        return np.concatenate([segment.values for segment in self.segments])

    def ledger(self, choice_bits: float = 0.0) -> BitLedger:
        """Return what the message costs, with the bits of the choices that its recipe made."""
        return BitLedger(
            symbols=math.fsum(segment.bits for segment in self.segments),
            codebook=float(sum(segment.codebook.bits for segment in self.segments)),
            choices=choice_bits,
            buffers=float(HALF_BITS * len(self.buffers)),
        )


def encode_message(
    segments: Sequence[Segment], recipe: Mapping[str, Any], *, buffers: np.ndarray | None = None
) -> bytes:
    """Return the bytes of a message.

    Raises:
        InputError: there are no segments or too many, symbols are out of range, buffers are not fp16 numbers, or the
            recipe is no JSON object or too long.
        MissingExtraError: constriction is not installed.
    """
    text = canonical_json(recipe)
    if len(text) > MAX_RECIPE_BYTES or not 1 <= len(segments) <= MAX_SEGMENTS:
        raise InputError(f"a recipe of {len(text)} bytes and {len(segments)} segments do not fit a message")
    parts = [MAGIC, struct.pack("<I", len(text)), text, struct.pack("<H", len(segments))]
    for segment in segments:
        book = segment.codebook
        stream = encode_symbols(segment.symbols, book.num_levels)
        kind = 0 if isinstance(book, TableCodebook) else 1
        parts.append(struct.pack("<BHI", kind, book.num_levels, len(segment.symbols)))
        parts += [book.halves.astype("<f2").tobytes(), struct.pack("<I", len(stream)), stream]
    given = np.empty(0) if buffers is None else np.asarray(buffers, dtype=np.float64).ravel()
    halves = given.astype("<f2")
    if not np.isfinite(given).all() or not np.array_equal(halves.astype(np.float64), given):
        raise InputError("buffers must be finite fp16 numbers, rounded before they are scored (to_half)")
    message = b"".join([*parts, struct.pack("<I", len(given)), halves.tobytes()])
    if len(message) > MAX_MESSAGE_BYTES:
        raise InputError(f"a message of {len(message)} bytes exceeds {MAX_MESSAGE_BYTES}")
    return message


def decode_message(data: bytes, *, max_symbols: int = MAX_SYMBOLS) -> Message:
    """Return what a message holds; memory is bounded by its length and by max_symbols.

    Raises:
        ArtefactError: the bytes are no message, cut short, padded, larger than allowed or not in the one encoding.
        MissingExtraError: constriction is not installed.
    """
    reader = _Reader(data)
    if len(data) > MAX_MESSAGE_BYTES or reader.take(len(MAGIC)) != MAGIC:
        raise ArtefactError("this is no certificate message of a known format, or it is too large")
    recipe = parse_canonical(reader.take(reader.number("<I", MAX_RECIPE_BYTES)), what="the recipe in the message")
    headers = []
    for _ in range(reader.number("<H", MAX_SEGMENTS)):
        kind, levels, count = struct.unpack("<BHI", reader.take(7))
        if kind > 1 or not 2 <= levels <= MAX_LEVELS or count < 1:
            raise ArtefactError(f"a segment of kind {kind} with {count} symbols of {levels} levels is refused")
        book = _codebook(kind, levels, reader.halves(levels if kind == 0 else 1))
        headers.append((count, book, reader.take(reader.number("<I", MAX_MESSAGE_BYTES))))
    buffers = reader.halves(reader.number("<I", 1 << 24))
    reader.finish()
    if not headers or sum(count for count, _, _ in headers) > max_symbols:
        raise ArtefactError(f"the message claims {sum(h[0] for h in headers)} symbols; {max_symbols} are allowed here")
    segments = tuple(Segment(decode_symbols(stream, count, book.num_levels), book) for count, book, stream in headers)
    return Message(recipe, segments, buffers)


def canonical_json(value: object) -> bytes:
    """Return JSON in its one canonical form: sorted keys, no space, no NaN, ASCII.

    Raises:
        InputError: the value is not plain JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"this cannot be written as JSON: {error}") from error


def parse_canonical(text: bytes, *, what: str) -> dict[str, Any]:
    """Return the object of canonical JSON text; another spelling of the same object is refused.

    Raises:
        ArtefactError: the text is not canonical JSON (duplicate keys, NaN, spaces, order), or no object.
    """
    try:
        value = json.loads(text)
        if isinstance(value, dict) and canonical_json(value) == text:
            return value
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{what} is not JSON ({type(error).__name__}); it is damaged or forged") from error
    raise ArtefactError(f"{what} is not in canonical form (an object, sorted, each key once); it is damaged or forged")


class _Reader:
    """Takes bytes off the front and refuses to run past the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise ArtefactError(f"the message ends at byte {len(self._data)} where {size} more were announced")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, layout: str, most: int) -> int:
        (value,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        if value > most:
            raise ArtefactError(f"the message announces {value} where at most {most} is allowed")
        return value

    def halves(self, count: int) -> np.ndarray:
        values = np.frombuffer(self.take(2 * count), dtype="<f2").astype(np.float64)
        if not np.isfinite(values).all():
            raise ArtefactError("the message holds a number that is not finite")
        return values

    def finish(self) -> None:
        if self._at != len(self._data):
            raise ArtefactError(f"{len(self._data) - self._at} bytes follow the end of the message")


def _codebook(kind: int, num_levels: int, halves: np.ndarray) -> Codebook:
    if kind == 0:
        return TableCodebook(tuple(float(value) for value in halves))
    return GridCodebook(num_levels, float(halves[0]))
