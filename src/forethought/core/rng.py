"""Randomness from (seed, stream, step, index): counter-based, never from global state.

A draw that is a function of its coordinates needs no saved generator: a resumed run, a second process or another
number of workers sees the same numbers. The key of the Philox generator is a hash of the seed and the stream's name;
step and index stand in the upper half of its 256-bit counter, so two coordinates are 2^128 draws apart.
"""

from __future__ import annotations

import hashlib
import operator
from typing import TYPE_CHECKING

import numpy as np

from forethought.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

_WORD = 1 << 64


def _digest(seed: int, stream: str) -> bytes:
    seed = operator.index(seed)
    if not 0 <= seed < _WORD:
        raise ConfigError(f"seed {seed} is out of range; give an integer from 0 to 2**64 - 1")
    key = seed.to_bytes(8, "little")
    return hashlib.blake2b(stream.encode(), digest_size=16, key=key, person=b"forethought-rng").digest()


def generator(seed: int, stream: str, step: int = 0, index: int = 0) -> np.random.Generator:
    """Return the NumPy generator of one coordinate.

    Raises:
        ConfigError: the seed, step or index is negative or above 2**64 - 1.
    """
    if not (0 <= step < _WORD and 0 <= index < _WORD):
        raise ConfigError(f"step {step} and index {index} must lie between 0 and 2**64 - 1")
    low, high = np.frombuffer(_digest(seed, stream), dtype="<u8")
    key = np.array([low, high], dtype=np.uint64)
    counter = np.array([0, 0, index, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def derive_seed(seed: int, stream: str, step: int = 0, index: int = 0) -> int:
    """Return a 63-bit seed for a library that wants a plain integer, derived from one coordinate."""
    return int(generator(seed, stream, step, index).integers(0, 2**63 - 1))


def torch_generator(seed: int, stream: str, step: int = 0, index: int = 0, device: str = "cpu") -> torch.Generator:
    """Return a torch generator seeded from one coordinate, on the named device."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, stream, step, index))
