"""The frames between target and draft: what is encoded comes back, and nothing else is taken for a message."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core.errors import InputError
from forethought.core.rng import generator
from forethought.decode.wire.messages import decode, encode
from forethought.decode.wire.protocol import (
    BEYOND,
    EMPTY_HASH,
    Demand,
    DraftSampling,
    Failure,
    Fallback,
    Free,
    Hello,
    Message,
    Origin,
    Outcome,
    Prefill,
    Shutdown,
    Spec,
    Spread,
    Stats,
    Tag,
    disagreement,
    extend_hash,
)

VOCABULARY = 64
TAG = Tag(7, 2, 31, 0xFEDCBA9876543210)
LAWS = np.full((3, VOCABULARY), 1.0 / VOCABULARY, dtype=np.float32)
MESSAGES: list[Message] = [
    Hello(VOCABULARY, bytes(range(32)), 8, 24, "bfloat16"),
    Prefill(TAG, np.arange(50, dtype=np.int32), DraftSampling(0.7, 20, 0.9, 0.05, (1 << 64) - 1), 200, Demand(5, 16)),
    Outcome(TAG, 2, [1, 2, 63], Demand(7, 16, Fallback.NGRAM, Spread.GEOMETRIC, 3)),
    Outcome(TAG, -1, [0], Demand(0)),
    Spec(TAG, Origin.CACHE, [1, 2, 3], None, False, True, 3, 1e-3, 2e-3, 4),
    Spec(TAG, Origin.DRAFT, [4, 5, 6], LAWS, rank=BEYOND),
    Spec(TAG, resync=True),
    Free(TAG),
    Stats(np.arange(5), np.array([0.5, 1.5])),
    Shutdown(),
    Failure("weights: grün"),
]


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.shape == right.shape and bool((left == right).all())
    if hasattr(left, "__dataclass_fields__"):
        return type(left) is type(right) and all(
            same(getattr(left, name), getattr(right, name)) for name in left.__dataclass_fields__
        )
    return bool(left == right)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_encoded_comes_back(message: Message) -> None:
    frame = encode(message)
    for form in (frame, bytearray(frame), memoryview(frame)):
        assert same(decode(form, VOCABULARY), message)


def test_the_layout_is_this_one() -> None:
    """Two releases that differ here do not understand each other: then the version must be raised."""
    frame = encode(
        Outcome(Tag(3, 1, 2, 0x0102030405060708), 1, [9, 10], Demand(5, 16, Fallback.DRAFT, Spread.EMPIRICAL, 4))
    )
    assert frame[:36].hex() == "4646544d0103000003000000000000000100000002000000080706050403020114000000"
    assert frame[40:].hex() == "010200000500100002020400090000000a000000"


@given(data=st.binary(max_size=300))
@settings(deadline=None, max_examples=300)
def test_random_bytes_are_no_message(data: bytes) -> None:
    with pytest.raises(InputError):
        decode(data, VOCABULARY)


@given(body=st.binary(max_size=120), kind=st.integers(0, 255))
@settings(deadline=None, max_examples=400)
def test_random_bodies_with_a_right_checksum_never_crash(body: bytes, kind: int) -> None:
    import zlib

    head = struct.pack("<IBBHqIIQI", 0x4D544646, 1, kind, 0, *TAG, len(body))
    for checked in (body, body[:28], body[: 28 + 4 * (body[3] if len(body) > 3 else 0)]):
        frame = head + struct.pack("<I", zlib.crc32(checked, zlib.crc32(head))) + body
        try:
            message = decode(frame, VOCABULARY)
        except InputError:
            continue
        # What is taken for a message can be sent as one; a number that is not one may have many forms.
        assert type(decode(encode(message), VOCABULARY)) is type(message)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_flipped_bit_is_seen_and_every_cut(message: Message) -> None:
    frame = encode(message)
    checked = len(frame) - (LAWS.nbytes if isinstance(message, Spec) and message.laws_KV is not None else 0)
    rng = generator(0, "test.flips")
    for at in {0, 4, 5, 12, 39, checked - 1, *rng.integers(checked, size=40).tolist()}:
        damaged = bytearray(frame)
        damaged[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(InputError):
            decode(damaged, VOCABULARY)
    for length in {0, 1, 39, 40, len(frame) - 1}:
        if length < len(frame):
            with pytest.raises(InputError):
                decode(frame[:length], VOCABULARY)
    with pytest.raises(InputError):
        decode(frame + b"\0", VOCABULARY)


def test_nothing_is_allocated_on_the_word_of_a_length() -> None:
    import zlib

    def lying(kind: int, body: bytes) -> bytes:
        head = struct.pack("<IBBHqIIQI", 0x4D544646, 1, kind, 0, *TAG, len(body))
        return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body

    frames = [
        lying(4, struct.pack("<BBBBIhxxdd", 1, 0, 0, 32, 0xFFFFFFFF, -1, 0.0, 0.0) + bytes(128)),
        lying(2, struct.pack("<IHHBBHIdiddQ", 9, 1, 1, 2, 2, 1, 1 << 20, 1.0, 0, 1.0, 0.0, 0)),
        lying(6, struct.pack("<II", 1 << 31, 1 << 31)),
    ]
    tracemalloc.start()
    try:
        for frame in frames:
            with pytest.raises(InputError):
                decode(frame, VOCABULARY)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (Outcome(TAG, 2, [1, 2, 64], Demand(1)), "token outside 0 to 63"),
        (Outcome(TAG, 3, [1, 2, 3], Demand(1)), "accepted tokens"),
        (Outcome(TAG, 0, [1], Demand(33)), "demand"),
        (Outcome(TAG, 0, [1], Demand(1, 300)), "demand"),
        (Prefill(TAG, np.array([64], dtype=np.int32), DraftSampling(), 9, Demand(1)), "tokens"),
        (Prefill(TAG, np.array([1], dtype=np.int32), DraftSampling(float("nan")), 9, Demand(1)), "temperature"),
        (Prefill(TAG, np.array([1], dtype=np.int32), DraftSampling(top_p=0.0), 9, Demand(1)), "filters"),
        (Spec(TAG, Origin.NONE, [1]), "origin"),
        (Spec(TAG, Origin.DRAFT, [1], glue_seconds=-1.0), "timing"),
    ],
)
def test_fields_out_of_range_are_named(message: Message, what: str) -> None:
    with pytest.raises(InputError, match=what):
        decode(encode(message), VOCABULARY)


@pytest.mark.parametrize(
    "message",
    [
        Outcome(TAG, 0, [], Demand(1)),
        Outcome(TAG, 0, [1] * 34, Demand(1)),
        Outcome(TAG, 0, [1 << 31], Demand(1)),
        Outcome(TAG, 0, [1], Demand(-1)),
        Spec(TAG, Origin.DRAFT, [1] * 33),
        Spec(TAG, Origin.DRAFT, [1, 2], LAWS),
        Spec(TAG._replace(epoch=-1)),
        Prefill(TAG, np.zeros(0, dtype=np.int32), DraftSampling(), 9, Demand(1)),
        Free(Tag(prefix_hash=1 << 64)),
    ],
)
def test_what_cannot_be_said_is_an_error(message: Message) -> None:
    with pytest.raises(InputError):
        encode(message)


def test_another_release_is_told_so() -> None:
    frame = bytearray(encode(Shutdown()))
    frame[4] = 9
    with pytest.raises(InputError, match="version 9, this side 1"):
        decode(bytes(frame))


def test_the_hash_rolls_and_tells_texts_apart() -> None:
    rng = generator(1, "test.hashes")
    seen: dict[int, tuple[int, ...]] = {}
    for _ in range(3000):
        text = tuple(rng.integers(4, size=rng.integers(0, 9)).tolist())
        cut = int(rng.integers(len(text) + 1))
        value = extend_hash(extend_hash(EMPTY_HASH, text[:cut]), text[cut:])
        assert 0 <= value < 1 << 64
        assert seen.setdefault(value, text) == text
    assert len(set(seen.values())) == len(seen)


def test_sides_that_do_not_fit_are_told_why() -> None:
    here = Hello(100, bytes([1] * 32))
    assert disagreement(here, replace(here, max_tokens=3, dtype="bfloat16")) == ""
    assert disagreement(here, replace(here, tokenizer_digest=bytes(32))) == ""
    assert "tokenizers" in disagreement(here, replace(here, tokenizer_digest=bytes([2] * 32)))
    assert "101 tokens and the target 100" in disagreement(here, replace(here, vocabulary_size=101))
    assert "the draft's 2" in disagreement(here, replace(here, version=2))
