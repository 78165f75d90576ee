"""Codes: what symbols cost (Krichevsky-Trofimov), what they mean (codebooks), and the bytes that carry them.

`encode_message` and `decode_message` are inverse to each other; the bits that a ledger charges are a function of the
decoded message, never of what a file says.
"""

from __future__ import annotations

from forethought.certify.codes.codebook import Codebook, GridCodebook, TableCodebook, assign, fit_grid, fit_table
from forethought.certify.codes.integers import elias_delta_bits
from forethought.certify.codes.kt import kt_bits
from forethought.certify.codes.message import Message, Segment, decode_message, encode_message
from forethought.certify.codes.stream import decode_symbols, encode_symbols

__all__ = [
    "Codebook",
    "GridCodebook",
    "Message",
    "Segment",
    "TableCodebook",
    "assign",
    "decode_message",
    "decode_symbols",
    "elias_delta_bits",
    "encode_message",
    "encode_symbols",
    "fit_grid",
    "fit_table",
    "kt_bits",
]
