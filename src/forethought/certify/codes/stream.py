"""Streams of symbols: constriction's range coder, driven by the adaptive Krichevsky-Trofimov law in fixed point.

The probabilities are multiples of 2^-24 from integer arithmetic, so the coder's own conversion to fixed point is exact
and a stream decodes to the same symbols on any machine.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from forethought.certify.codes.kt import PRECISION, kt_weights
from forethought.core.errors import ArtefactError, InputError
from forethought.core.extras import require

MAX_SYMBOLS = 1 << 26
_BLOCK_ENTRIES = 1 << 20


def encode_symbols(symbols: np.ndarray, num_levels: int) -> bytes:
    """Return the stream of symbols [d], each 0 to num_levels - 1: little-endian 32-bit words.

    Raises:
        InputError: the symbols are no whole numbers in range, or there are none.
        MissingExtraError: constriction is not installed.
    """
    symbols = _checked(symbols, num_levels)
    coder = _coder()
    encoder = coder.queue.RangeEncoder()
    family = coder.model.Categorical(perfect=False)
    counts = np.zeros(num_levels, dtype=np.int64)
    size = max(1, _BLOCK_ENTRIES // num_levels)
    for start in range(0, len(symbols), size):
        block = symbols[start : start + size]
        seen = np.zeros((len(block) + 1, num_levels), dtype=np.int64)
        seen[np.arange(1, len(block) + 1), block] = 1
        before = counts + np.cumsum(seen, axis=0)
        counts = before[-1]
        encoder.encode(block.astype(np.int32), family, _law(before[:-1]))
    return encoder.get_compressed().astype("<u4").tobytes()


def decode_symbols(stream: bytes, num_symbols: int, num_levels: int) -> np.ndarray:
    """Return the symbols of a stream.

    Raises:
        ArtefactError: the stream is not the one that encodes the symbols it decodes to, or the counts are out of range.
        MissingExtraError: constriction is not installed.
    """
    if not (1 <= num_symbols <= MAX_SYMBOLS and 2 <= num_levels <= 1 << 12 and len(stream) % 4 == 0):
        raise ArtefactError(
            f"a stream of {len(stream)} bytes for {num_symbols} symbols of {num_levels} levels is refused"
        )
    coder = _coder()
    words = np.frombuffer(stream, dtype="<u4").astype(np.uint32)
    decoder = coder.queue.RangeDecoder(words)
    symbols = np.empty(num_symbols, dtype=np.int64)
    counts = np.zeros(num_levels, dtype=np.int64)
    model = coder.model.Categorical
    try:
        for i in range(num_symbols):
            symbol = decoder.decode(model(_law(counts), perfect=False))
            symbols[i] = symbol
            counts[symbol] += 1
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ArtefactError(f"the stream is damaged: {error}") from error
    if encode_symbols(symbols, num_levels) != stream:
        raise ArtefactError("the stream is damaged or padded: it is not the code of the symbols that it decodes to")
    return symbols


def _law(counts: np.ndarray) -> np.ndarray:
    return kt_weights(counts).astype(np.float64) * 2.0**-PRECISION


def _checked(symbols: np.ndarray, num_levels: int) -> np.ndarray:
    if symbols.ndim != 1 or symbols.dtype.kind not in "iu" or not 1 <= len(symbols) <= MAX_SYMBOLS:
        raise InputError(f"symbols have type {symbols.dtype} and shape {symbols.shape}; give 1 to 2**26 whole numbers")
    if not 2 <= num_levels <= 1 << 12:
        raise InputError(f"num_levels {num_levels} is out of range; give 2 to 4096")
    if int(symbols.min()) < 0 or int(symbols.max()) >= num_levels:
        raise InputError(f"symbols run from {symbols.min()} to {symbols.max()}; there are {num_levels} levels")
    return symbols.astype(np.int64)


def _coder() -> ModuleType:
    return require("constriction", extra="certify", purpose="coding certificates").stream
