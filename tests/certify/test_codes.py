"""Codes: masses that sum to one, streams that decode to what was encoded, codebooks that are what they cost."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.certify.codes import (
    GridCodebook,
    Segment,
    TableCodebook,
    assign,
    decode_message,
    decode_symbols,
    elias_delta_bits,
    encode_message,
    encode_symbols,
    fit_grid,
    fit_table,
    kt_bits,
)
from forethought.certify.codes.codebook import table_of, to_half
from forethought.certify.codes.kt import PRECISION, kt_weights
from forethought.core.errors import ArtefactError, InputError
from forethought.core.rng import generator

mpmath.mp.dps = 50


def exact_kt(counts: list[int]) -> mpmath.mpf:
    half = mpmath.mpf(1) / 2
    value = mpmath.loggamma(sum(counts) + len(counts) * half) - mpmath.loggamma(len(counts) * half)
    value += mpmath.fsum(mpmath.loggamma(half) - mpmath.loggamma(c + half) for c in counts)
    return value / mpmath.log(2)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=30))
@settings(deadline=None, max_examples=100)
def test_kt_length_equals_mpmath_from_above(counts: list[int]) -> None:
    exact = exact_kt(counts)
    assert 0 <= kt_bits(counts) - exact <= 1e-12 * max(1, sum(counts))


@pytest.mark.parametrize(("num_letters", "length"), [(2, 9), (3, 6), (5, 4)])
def test_kt_masses_of_all_sequences_sum_to_one(num_letters: int, length: int) -> None:
    total = math.fsum(
        2.0 ** -kt_bits(np.bincount(word, minlength=num_letters))
        for word in itertools.product(range(num_letters), repeat=length)
    )
    assert 1 - 1e-9 <= total <= 1, "a law, rounded down: Kraft's inequality holds"


def test_the_sequential_law_multiplies_to_the_closed_form() -> None:
    word, counts, bits = [0, 2, 2, 1, 2, 0, 2], np.zeros(3, dtype=np.int64), 0.0
    for letter in word:
        bits -= math.log2((2 * counts[letter] + 1) / (2 * counts.sum() + 3))
        counts[letter] += 1
    assert kt_bits(counts) == pytest.approx(bits, rel=1e-13)


@given(st.lists(st.integers(0, 10**7), min_size=2, max_size=300))
@settings(deadline=None, max_examples=60)
def test_fixed_point_laws_are_laws(counts: list[int]) -> None:
    weights = kt_weights(np.array(counts))
    assert int(weights.sum()) == 1 << PRECISION
    assert int(weights.min()) >= 1
    exact = (2 * np.array(counts, dtype=float) + 1) / (2 * sum(counts) + len(counts))
    assert np.abs(weights / 2.0**PRECISION - exact).max() <= 2.0 * len(counts) / 2**PRECISION


def test_elias_lengths_are_a_prefix_code() -> None:
    assert [elias_delta_bits(n) for n in (1, 2, 3, 4, 7, 8, 16, 17, 1_000_000)] == [1, 4, 4, 5, 5, 8, 9, 9, 28]
    assert math.fsum(2.0 ** -elias_delta_bits(n) for n in range(1, 1 << 12)) < 1
    for bad in (0, -3, True, 1.5):
        with pytest.raises(InputError):
            elias_delta_bits(bad)  # type: ignore[arg-type]


@given(st.integers(2, 40), st.data())
@settings(deadline=None, max_examples=40)
def test_streams_decode_to_what_was_encoded(num_levels: int, data: st.DataObject) -> None:
    symbols = np.array(data.draw(st.lists(st.integers(0, num_levels - 1), min_size=1, max_size=400)))
    stream = encode_symbols(symbols, num_levels)
    assert np.array_equal(decode_symbols(stream, len(symbols), num_levels), symbols)
    bits = kt_bits(np.bincount(symbols, minlength=num_levels))
    assert bits - 1 <= 8 * len(stream) <= bits + 64 + 1e-3 * len(symbols)


def test_a_long_stream_crosses_the_blocks_of_the_encoder() -> None:
    symbols = np.minimum(generator(0, "codes").geometric(0.4, size=30_000), 299)
    stream = encode_symbols(symbols, 300)
    assert np.array_equal(decode_symbols(stream, len(symbols), 300), symbols)


def test_a_stream_is_the_same_on_every_machine() -> None:
    """A golden stream: fixed-point laws and the coder's words, byte for byte."""
    symbols = (np.arange(60) ** 2) % 7 % 5
    assert encode_symbols(symbols, 5).hex() == GOLDEN
    assert decode_symbols(bytes.fromhex(GOLDEN), 60, 5).tolist() == symbols.tolist()


GOLDEN = "36a5ef1c977d0e5256bdc3184aea64847ce6d5f1"


@pytest.mark.parametrize("change", ["flip", "cut", "pad", "longer"])
def test_a_changed_stream_is_not_taken_for_the_same_symbols(change: str) -> None:
    symbols = generator(1, "codes").integers(0, 5, size=200)
    stream = bytearray(encode_symbols(symbols, 5))
    count = 200
    if change == "flip":
        stream[7] ^= 1
        try:
            assert not np.array_equal(decode_symbols(bytes(stream), count, 5), symbols)
        except ArtefactError:
            return
        return
    if change == "cut":
        del stream[-4:]
    elif change == "pad":
        stream += b"\0\0\0\0"
    else:
        count += 40
    with pytest.raises(ArtefactError, match="damaged"):
        decode_symbols(bytes(stream), count, 5)


def test_symbols_out_of_range_are_refused() -> None:
    for symbols, levels in [([0, 5], 5), ([-1, 0], 5), ([], 5), ([0.5], 5), ([0], 1), ([0], 5000)]:
        with pytest.raises(InputError):
            encode_symbols(np.array(symbols), levels)


def test_table_codebooks_minimise_the_squared_error() -> None:
    values = np.concatenate([generator(2, "codes").normal(m, 0.05, size=200) for m in (-2.0, 0.0, 1.0, 5.0)])
    book = fit_table(values, 4)
    assert sorted(book.table) == pytest.approx([-2, 0, 1, 5], abs=0.02)
    assert book.bits == 64
    error = np.square(values - book.values[assign(values, book)]).mean()
    for seed in range(20):
        other = table_of(np.sort(generator(seed, "other").choice(values, 4, replace=False)))
        assert error <= np.square(values - other.values[assign(values, other)]).mean() + 1e-6


def test_degenerate_values_still_give_a_codebook() -> None:
    assert fit_table(np.zeros(10), 3).table == (0.0, 0.0, 0.0)
    assert fit_table(np.array([1.0]), 4).num_levels == 4
    assert fit_grid(np.zeros(10), 4).step > 0
    for bad in (np.array([math.nan]), np.array([]), np.array([1e30])):
        with pytest.raises(InputError):
            fit_table(bad, 3)


def test_grids_are_symmetric_and_near_the_best_step() -> None:
    values = generator(3, "codes").normal(size=2_000)
    grid = fit_grid(values, 8)
    assert grid.values.sum() == 0
    assert grid.bits == 16
    assert 0.5 < grid.step < 0.68, "the best uniform quantiser of a normal law at 8 levels has step 0.586"


def test_assignment_is_nearest_or_cheapest() -> None:
    book = TableCodebook((1.0, -1.0, 0.0))
    values = np.array([0.9, -0.6, 0.2, 0.45, 0.55])
    assert assign(values, book).tolist() == [0, 1, 2, 2, 0]
    prices = np.array([8.0, 8.0, 0.5])
    assert assign(values, book, rate=0.2, level_bits=prices).tolist() == [2, 2, 2, 2, 2]
    assert assign(values, book, rate=1e-9, level_bits=prices).tolist() == [0, 1, 2, 2, 0]


def test_a_codebook_holds_only_what_it_pays_for() -> None:
    for bad in [(0.1, 1.0), (math.inf, 0.0), (70_000.0, 0.0), (1.0,)]:
        with pytest.raises(InputError):
            TableCodebook(bad)
    with pytest.raises(InputError):
        GridCodebook(4, 0.1)
    assert float(to_half(np.array([0.1]))[0]) != 0.1


def segments() -> list[Segment]:
    rng = generator(4, "codes")
    table = fit_table(rng.normal(size=300), 7)
    return [
        Segment(rng.integers(0, 7, size=300), table),
        Segment(rng.integers(0, 16, size=50), GridCodebook(16, float(np.float16(0.03)))),
    ]


def test_a_message_decodes_to_the_same_arrays() -> None:
    buffers = to_half(np.array([0.1, -3.0, 7.5]))
    message = encode_message(segments(), {"b": [1, 2.5, None], "a": "x"}, buffers=buffers)
    decoded = decode_message(message)
    assert decoded.recipe == {"a": "x", "b": [1, 2.5, None]}
    for before, after in zip(segments(), decoded.segments, strict=True):
        assert np.array_equal(before.symbols, after.symbols)
        assert before.codebook == after.codebook
    assert np.array_equal(decoded.buffers, buffers)
    assert len(decoded.numbers) == 350
    ledger = decoded.ledger(3.0)
    assert ledger.codebook == 7 * 16 + 16
    assert ledger.buffers == 48
    assert ledger.choices == 3.0
    assert ledger.symbols == pytest.approx(sum(segment.bits for segment in segments()))
    assert encode_message(decoded.segments, decoded.recipe, buffers=decoded.buffers) == message


def test_no_byte_of_a_message_is_idle() -> None:
    """Whatever byte changes, the message is refused or means something else."""
    message = encode_message(segments(), {"a": 1}, buffers=np.array([1.5]))
    plain = decode_message(message)
    for position in range(len(message)):
        changed = bytearray(message)
        changed[position] ^= 0x15
        try:
            other = decode_message(bytes(changed))
        except ArtefactError:
            continue
        same = other.recipe == plain.recipe and np.array_equal(other.buffers, plain.buffers)
        same = same and all(
            np.array_equal(a.symbols, b.symbols) and a.codebook == b.codebook
            for a, b in zip(plain.segments, other.segments, strict=True)
        )
        assert not same, f"byte {position} can be changed unnoticed"


def test_what_cannot_be_coded_is_refused() -> None:
    with pytest.raises(InputError):
        encode_message([], {})
    with pytest.raises(InputError):
        encode_message(segments(), {"a": math.nan})
    with pytest.raises(InputError):
        encode_message(segments(), {"a": "x" * 70_000})
    with pytest.raises(InputError):
        encode_message(segments(), {}, buffers=np.array([0.1]))
