"""Messages as frames of fixed layout, little endian, checked field by field.

A frame is a header of 40 bytes, a body whose layout its kind fixes, and, for a sampled draft, the laws behind it. A
checksum covers all but the laws, which are checked as laws where they are used. Nothing in a frame is ever run, and
nothing is allocated on the word of a length.

Shape suffixes: K drafted tokens, V vocabulary, T tokens of a text.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from forethought.core.errors import InputError
from forethought.decode.wire.protocol import (
    BEYOND,
    MAX_BUDGET,
    MAX_TEXT,
    MAX_TOKENS,
    MAX_VOCABULARY,
    VERSION,
    Demand,
    DraftSampling,
    Failure,
    Fallback,
    Free,
    Hello,
    Kind,
    Message,
    Origin,
    Outcome,
    Prefill,
    Shutdown,
    Spec,
    Spread,
    Stats,
    Tag,
)

Frame: TypeAlias = bytes | bytearray | memoryview

_MAGIC = 0x4D544646
_HEADER = struct.Struct("<IBBHqIIQI")
_CHECK = struct.Struct("<I")
_SIZE = _HEADER.size + _CHECK.size
_DEMAND = "HHBBH"
_HELLO = struct.Struct("<II32sHH8s")
_PREFILL = struct.Struct(f"<I{_DEMAND}IdiddQ")
_OUTCOME = struct.Struct(f"<bBxx{_DEMAND}")
_SPEC = struct.Struct("<BBBBIhxxdd")
_NO_RANK = -1
_COUNTS = struct.Struct("<II")
_TOKENS = [struct.Struct(f"<{count}i") for count in range(MAX_TOKENS + 2)]
_FALLBACKS = {int(fallback): fallback for fallback in Fallback}
_SPREADS = {int(spread): spread for spread in Spread}
_ORIGINS = {int(origin): origin for origin in Origin}
_NO_TAG = Tag()


def encode(message: Message) -> bytes:
    """Return the frame of a message.

    Raises:
        InputError: a field is out of its range.
    """
    tail = b""
    try:
        match message:
            case Outcome():
                body = _outcome_body(message)
            case Spec():
                body = _spec_body(message)
                if message.laws_KV is not None:
                    tail = np.ascontiguousarray(message.laws_KV, dtype="<f4").tobytes()
            case _:
                body = _rare_body(message)
        tag = getattr(message, "tag", _NO_TAG)
        kind = _KINDS[type(message)]
        head = _HEADER.pack(_MAGIC, VERSION, kind, 0, *tag, len(body) + len(tail))
    except (struct.error, OverflowError, TypeError) as error:
        raise InputError(f"{type(message).__name__} has a field out of range: {error}") from error
    return b"".join((head, _CHECK.pack(zlib.crc32(body, zlib.crc32(head))), body, tail))


def decode(frame: Frame, vocabulary_size: int = MAX_VOCABULARY) -> Message:
    """Return the message of a frame; its arrays are views of the frame.

    Raises:
        InputError: the frame is not one that `encode` makes for this vocabulary: too short, too long, damaged, of
            another version, or with a field out of range.
    """
    view = memoryview(frame).cast("B") if isinstance(frame, memoryview) else memoryview(frame)
    if len(view) < _SIZE:
        raise InputError(f"a frame of {len(view)} bytes; the header alone has {_SIZE}")
    magic, version, kind, flags, request, epoch, round_, prefix_hash, size = _HEADER.unpack_from(view)
    if magic != _MAGIC or flags or not Kind.HELLO <= kind <= Kind.ERROR:
        raise InputError("these bytes are not a frame of this protocol")
    if version != VERSION:
        raise InputError(f"the frame has protocol version {version}, this side {VERSION}; run one release on both")
    body = view[_SIZE:]
    if size != len(body):
        raise InputError(f"the frame says {size} bytes of body and has {len(body)}")
    checked = _checked_size(kind, body)
    if zlib.crc32(body[:checked], zlib.crc32(view[: _HEADER.size])) != _CHECK.unpack_from(view, _HEADER.size)[0]:
        raise InputError("the frame's checksum does not match; it was damaged on the way")
    return _READERS[kind](Tag(request, epoch, round_, prefix_hash), body, vocabulary_size)


def _checked_size(kind: int, body: memoryview) -> int:
    """How much of a body the checksum covers: all but the laws of a draft."""
    if kind != Kind.SPEC or len(body) < _SPEC.size:
        return len(body)
    return _SPEC.size + 4 * body[3]


def _outcome_body(message: Outcome) -> bytes:
    tokens = message.tokens
    if not 1 <= len(tokens) <= MAX_TOKENS + 1:
        raise InputError(f"an outcome commits 1 to {MAX_TOKENS + 1} tokens; given {len(tokens)}")
    head = _OUTCOME.pack(message.accepted, len(tokens), *message.demand)
    return head + _TOKENS[len(tokens)].pack(*tokens)


def _spec_body(message: Spec) -> bytes:
    tokens, laws_KV = message.tokens, message.laws_KV
    if len(tokens) > MAX_TOKENS:
        raise InputError(f"a draft has at most {MAX_TOKENS} tokens; given {len(tokens)}")
    width = 0
    if laws_KV is not None:
        if laws_KV.ndim != 2 or len(laws_KV) != len(tokens):
            raise InputError(f"{len(tokens)} tokens need as many laws; given shape {laws_KV.shape}")
        width = laws_KV.shape[1]
    bits = message.resync | message.complete << 1
    head = _SPEC.pack(
        message.origin,
        bits,
        message.ready,
        len(tokens),
        width,
        _NO_RANK if message.rank is None else message.rank,
        message.glue_seconds,
        message.tree_seconds,
    )
    return head + _TOKENS[len(tokens)].pack(*tokens)


def _rare_body(message: Message) -> bytes:
    match message:
        case Hello():
            return _HELLO.pack(
                message.version,
                message.vocabulary_size,
                message.tokenizer_digest,
                message.max_tokens,
                message.max_budget,
                message.dtype.encode("ascii"),
            )
        case Prefill():
            tokens_T, sampling = np.ascontiguousarray(message.tokens_T, dtype="<i4"), message.sampling
            if not 1 <= len(tokens_T) <= MAX_TEXT:
                raise InputError(f"a text has 1 to {MAX_TEXT} tokens; given {len(tokens_T)}")
            return _PREFILL.pack(message.max_length, *message.demand, len(tokens_T), *sampling) + tokens_T.tobytes()
        case Stats():
            counts, seconds = message.counts.astype("<i8"), message.seconds.astype("<f8")
            return _COUNTS.pack(len(counts), len(seconds)) + counts.tobytes() + seconds.tobytes()
        case Failure():
            return message.text.encode()[:4096]
        case _:
            return b""


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise InputError(f"the frame's {what} out of range")


def _read_tokens(body: memoryview, at: int, count: int, vocabulary_size: int) -> list[int]:
    tokens = list(_TOKENS[count].unpack_from(body, at))
    if count and not (min(tokens) >= 0 and max(tokens) < vocabulary_size):
        raise InputError(f"the frame holds a token outside 0 to {vocabulary_size - 1}")
    return tokens


def _read_demand(wanted: int, budget: int, fallback: int, spread: int, jit_length: int) -> Demand:
    _need(wanted <= MAX_TOKENS and jit_length <= MAX_TOKENS and budget <= MAX_BUDGET, "demand is")
    _need(fallback in _FALLBACKS and spread in _SPREADS, "fallback or spread is")
    return Demand(wanted, budget, _FALLBACKS[fallback], _SPREADS[spread], jit_length)


def _read_hello(tag: Tag, body: memoryview, vocabulary_size: int) -> Hello:
    _need(len(body) == _HELLO.size, "size is")
    version, size, digest, max_tokens, max_budget, dtype = _HELLO.unpack(body)
    _need(1 <= size <= MAX_VOCABULARY and max_tokens <= MAX_TOKENS and max_budget <= MAX_BUDGET, "sizes are")
    name = bytes(dtype).rstrip(b"\0")
    _need(name.isascii(), "dtype is")
    return Hello(size, digest, max_tokens, max_budget, name.decode("ascii"), version)


def _read_prefill(tag: Tag, body: memoryview, vocabulary_size: int) -> Prefill:
    _need(len(body) >= _PREFILL.size, "size is")
    max_length, *rest = _PREFILL.unpack_from(body)
    demand, count, law = rest[:5], rest[5], rest[6:]
    _need(1 <= count <= MAX_TEXT and len(body) == _PREFILL.size + 4 * count, "number of tokens is")
    sampling = DraftSampling(*law)
    _need(math.isfinite(sampling.temperature) and sampling.temperature >= 0.0, "temperature is")
    _need(sampling.top_k >= -1 and 0.0 < sampling.top_p <= 1.0 and 0.0 <= sampling.min_p <= 1.0, "filters are")
    tokens_T = np.frombuffer(body, dtype="<i4", offset=_PREFILL.size)
    _need(bool(tokens_T.min() >= 0) and bool(tokens_T.max() < vocabulary_size), "tokens are")
    return Prefill(tag, tokens_T, sampling, max_length, _read_demand(*demand))


def _read_outcome(tag: Tag, body: memoryview, vocabulary_size: int) -> Outcome:
    _need(len(body) >= _OUTCOME.size, "size is")
    accepted, count, *demand = _OUTCOME.unpack_from(body)
    _need(1 <= count <= MAX_TOKENS + 1 and len(body) == _OUTCOME.size + 4 * count, "number of tokens is")
    _need(-1 <= accepted < count, "number of accepted tokens is")
    tokens = _read_tokens(body, _OUTCOME.size, count, vocabulary_size)
    return Outcome(tag, accepted, tokens, _read_demand(*demand))


def _read_spec(tag: Tag, body: memoryview, vocabulary_size: int) -> Spec:
    _need(len(body) >= _SPEC.size, "size is")
    origin, bits, ready, count, width, rank, glue_seconds, tree_seconds = _SPEC.unpack_from(body)
    laws_at = _SPEC.size + 4 * count
    _need(count <= MAX_TOKENS and ready <= MAX_TOKENS and len(body) == laws_at + 4 * count * width, "size is")
    _need(origin in _ORIGINS and bits < 4 and (origin != Origin.NONE or count == 0), "origin is")
    _need(0.0 <= glue_seconds < math.inf and 0.0 <= tree_seconds < math.inf, "timing is")
    _need(BEYOND <= rank <= MAX_BUDGET, "rank is")
    tokens = _read_tokens(body, _SPEC.size, count, vocabulary_size)
    laws_KV = np.frombuffer(body, dtype="<f4", offset=laws_at).reshape(count, width) if width else None
    resync, complete = bool(bits & 1), bool(bits & 2)
    known = None if rank == _NO_RANK else rank
    return Spec(tag, _ORIGINS[origin], tokens, laws_KV, resync, complete, ready, glue_seconds, tree_seconds, known)


def _read_stats(tag: Tag, body: memoryview, vocabulary_size: int) -> Stats:
    _need(len(body) >= 8, "size is")
    num_counts, num_seconds = _COUNTS.unpack_from(body)
    _need(len(body) == 8 + 8 * (num_counts + num_seconds), "size is")
    counts = np.frombuffer(body, dtype="<i8", offset=8, count=num_counts)
    return Stats(counts, np.frombuffer(body, dtype="<f8", offset=8 + 8 * num_counts, count=num_seconds))


def _read_free(tag: Tag, body: memoryview, vocabulary_size: int) -> Free:
    _need(len(body) == 0, "size is")
    return Free(tag)


def _read_shutdown(tag: Tag, body: memoryview, vocabulary_size: int) -> Shutdown:
    _need(len(body) == 0, "size is")
    return Shutdown()


def _read_failure(tag: Tag, body: memoryview, vocabulary_size: int) -> Failure:
    return Failure(bytes(body).decode("utf-8", errors="replace"))


_KINDS: dict[type[object], Kind] = {
    Hello: Kind.HELLO,
    Prefill: Kind.PREFILL,
    Outcome: Kind.OUTCOME,
    Spec: Kind.SPEC,
    Free: Kind.FREE,
    Stats: Kind.STATS,
    Shutdown: Kind.SHUTDOWN,
    Failure: Kind.ERROR,
}
_READERS: dict[int, Callable[[Tag, memoryview, int], Message]] = {
    Kind.HELLO: _read_hello,
    Kind.PREFILL: _read_prefill,
    Kind.OUTCOME: _read_outcome,
    Kind.SPEC: _read_spec,
    Kind.FREE: _read_free,
    Kind.STATS: _read_stats,
    Kind.SHUTDOWN: _read_shutdown,
    Kind.ERROR: _read_failure,
}
