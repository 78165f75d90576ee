"""A prior over all positive integers, for choices without a declared grid."""

from __future__ import annotations

from forethought.core.errors import InputError


def elias_delta_bits(value: int) -> int:
    """Return the length of the Elias delta code of a positive integer; 2^-length sums to 1 over all of them.

    Raises:
        InputError: the value is not 1 or more.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{value!r} has no Elias code; give an integer of 1 or more")
    length = value.bit_length()
    return length - 1 + 2 * (length.bit_length() - 1) + 1
