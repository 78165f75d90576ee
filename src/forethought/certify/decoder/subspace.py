"""Subspaces: from d numbers to D weights by a map that a seed fixes and that no data touch.

theta = base + scale * P w, with rows of P of mean squared length 1, so that a number of size 1 moves a weight by about
its own first standard deviation. Random parts are signs and permutations from integers, the same on every machine.

Legend: D weights, d numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forethought.certify.decoder.base import raw_words, signs, symmetric_uniforms
from forethought.core.errors import ArtefactError, unknown_name

MAX_DENSE_ENTRIES = 1 << 29
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Subspace:
    """A fixed linear map from `dimension` numbers to `size` weights; `expand` is differentiable in the numbers."""

    kind: str
    size: int
    dimension: int
    expand: Callable[[Tensor], Tensor]


def subspace(kind: str, size: int, dimension: int, seed: int, *, dtype: torch.dtype = torch.float64) -> Subspace:
    """Return the map of a kind, `identity`, `hash`, `dense` or `kronecker`, with its fixed parts in `dtype`.

    Raises:
        ConfigError: the kind is unknown.
        ArtefactError: the dimension exceeds the size, or a dense map would be too large.
    """
    if kind not in SUBSPACES:
        raise unknown_name("subspace", kind, SUBSPACES)
    if not 1 <= dimension <= size:
        raise ArtefactError(f"a subspace of {dimension} dimensions does not fit {size} weights; give 1 to {size}")
    return Subspace(kind, size, dimension, SUBSPACES[kind](size, dimension, seed, dtype))


def _identity(size: int, dimension: int, seed: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    del seed, dtype
    if size != dimension:
        raise ArtefactError(f"the identity has one number a weight: {dimension} for {size} weights")
    return lambda numbers: numbers


def _hash(size: int, dimension: int, seed: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """P[i, j] = sign_i 1[bucket_i = j] with balanced buckets: orthogonal columns in O(D) memory."""
    order = np.argsort(raw_words(seed, "certify.hash.order", size), kind="stable")
    buckets = np.empty(size, dtype=np.int64)
    buckets[order] = np.arange(size) % dimension
    bucket_D = torch.from_numpy(buckets)
    sign_D = torch.from_numpy(signs(seed, "certify.hash.sign", size)).to(dtype)
    return lambda numbers: numbers[bucket_D] * sign_D


def _dense(size: int, dimension: int, seed: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Independent signs over sqrt(d)."""
    if size * dimension > MAX_DENSE_ENTRIES:
        raise ArtefactError(
            f"a dense subspace of {size} x {dimension} entries is refused (at most {MAX_DENSE_ENTRIES}); use hash"
        )
    rows = max(1, _BLOCK // dimension)
    blocks = [
        torch.from_numpy(
            signs(seed, "certify.dense", min(rows, size - start) * dimension, step=start // rows).reshape(-1, dimension)
        )
        for start in range(0, size, rows)
    ]
    shrink = 1.0 / math.sqrt(dimension)
    if size * dimension <= _BLOCK * 16:
        matrix_Dd = torch.cat(blocks).to(dtype) * shrink
        return lambda numbers: matrix_Dd @ numbers
    # Kept as signs: eight times smaller than float64, converted a block at a time.
    return lambda numbers: torch.cat([block.to(numbers.dtype) @ numbers for block in blocks]) * shrink


def _kronecker(size: int, dimension: int, seed: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A permutation of Q1 (x) Q2 with orthonormal columns, of the next square sizes, cut to D x d."""
    side, inner = math.isqrt(size - 1) + 1, math.isqrt(dimension - 1) + 1
    left, right = (torch.from_numpy(_orthonormal(side, inner, seed, name)).to(dtype) for name in ("left", "right"))
    order_D = torch.from_numpy(
        np.argsort(raw_words(seed, "certify.kronecker.order", side * side), kind="stable")[:size]
    )
    padding = inner * inner - dimension
    gain = side / math.sqrt(dimension)

    def expand(numbers: Tensor) -> Tensor:
        square = torch.nn.functional.pad(numbers, (0, padding)).reshape(inner, inner)
        return (left @ square @ right.T).reshape(-1)[order_D] * gain

    return expand


def _orthonormal(rows: int, columns: int, seed: int, name: str) -> np.ndarray:
    draws = symmetric_uniforms(seed, f"certify.kronecker.{name}", rows * columns).reshape(rows, columns)
    q, r = np.linalg.qr(draws)
    # The sign of a column is a free choice of the library; a positive diagonal fixes it.
    return q * np.where(np.diagonal(r) < 0, -1.0, 1.0)


SUBSPACES: dict[str, Callable[[int, int, int, torch.dtype], Callable[[Tensor], Tensor]]] = {
    "identity": _identity,
    "hash": _hash,
    "dense": _dense,
    "kronecker": _kronecker,
}
