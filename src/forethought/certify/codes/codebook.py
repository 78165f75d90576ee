"""One-dimensional codebooks in fp16: a table of values, or a symmetric grid with one step.

What is charged and what is decoded are the same object: a codebook holds nothing but the fp16 numbers that it pays for.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from forethought.core.errors import InputError

HALF_BITS = 16
MAX_LEVELS = 4096
_NUM_BINS = 1024


@dataclass(frozen=True)
class TableCodebook:
    """L values, one a level, at 16 bits each."""

    table: tuple[float, ...]
    kind = "table"

    def __post_init__(self) -> None:
        _check_halves(self.table)
        if not 2 <= len(self.table) <= MAX_LEVELS:
            raise InputError(f"{len(self.table)} levels; a codebook has 2 to {MAX_LEVELS}")

    @property
    def num_levels(self) -> int:
        """The number of values."""
        return len(self.table)

    @property
    def values(self) -> np.ndarray:
        """The value of each level, in float64."""
        return np.array(self.table, dtype=np.float64)

    @property
    def halves(self) -> np.ndarray:
        """The fp16 numbers that a message carries."""
        return np.array(self.table, dtype=np.float16)

    @property
    def bits(self) -> int:
        """What the codebook costs."""
        return HALF_BITS * len(self.table)


@dataclass(frozen=True)
class GridCodebook:
    """L multiples of one step, centred on 0: level l means (l - (L - 1) / 2) step; 16 bits for the step."""

    num_levels: int
    step: float
    kind = "grid"

    def __post_init__(self) -> None:
        _check_halves((self.step,))
        if not 2 <= self.num_levels <= MAX_LEVELS:
            raise InputError(f"{self.num_levels} levels; a codebook has 2 to {MAX_LEVELS}")

    @property
    def values(self) -> np.ndarray:
        """The value of each level, in float64."""
        return (np.arange(self.num_levels) - (self.num_levels - 1) / 2.0) * self.step

    @property
    def halves(self) -> np.ndarray:
        """The fp16 numbers that a message carries."""
        return np.array([self.step], dtype=np.float16)

    @property
    def bits(self) -> int:
        """What the codebook costs."""
        return HALF_BITS


Codebook = TableCodebook | GridCodebook


def to_half(values: np.ndarray) -> np.ndarray:
    """Round values to fp16, kept in float64.

    Raises:
        InputError: a value is not finite in fp16.
    """
    with np.errstate(over="ignore"):
        rounded = np.asarray(values, dtype=np.float64).astype(np.float16).astype(np.float64)
    if not np.isfinite(rounded).all():
        raise InputError("a codebook value is not finite in fp16; keep values below 65504")
    return rounded


def table_of(values: np.ndarray) -> TableCodebook:
    """Return the codebook of values after rounding them to fp16, in their order.

    Raises:
        InputError: a value is not finite in fp16, or there are fewer than 2 or more than 4096.
    """
    return TableCodebook(tuple(float(value) for value in to_half(values)))


def fit_table(values: np.ndarray, num_levels: int) -> TableCodebook:
    """Return the k-means codebook of values [d], best possible on 1024 quantile bins, then Lloyd's steps on all values.

    Fewer different values than levels give equal entries; the code of the symbols makes unused ones nearly free.

    Raises:
        InputError: the values are not finite, or the number of levels is out of range.
    """
    flat = np.sort(np.asarray(values, dtype=np.float64).ravel())
    if len(flat) == 0 or not np.isfinite(flat).all() or not 2 <= num_levels <= MAX_LEVELS:
        raise InputError(f"{len(flat)} values and {num_levels} levels: give finite values and 2 to {MAX_LEVELS} levels")
    bins = [piece for piece in np.array_split(flat, min(_NUM_BINS, len(flat))) if len(piece)]
    means, weights = np.array([p.mean() for p in bins]), np.array([float(len(p)) for p in bins])
    used = min(num_levels, len(means))
    centres = _best_partition(means, weights, used)
    for _ in range(50):
        edges = np.searchsorted(flat, 0.5 * (centres[1:] + centres[:-1]))
        parts = np.split(flat, edges)
        moved = np.array([part.mean() if len(part) else centre for part, centre in zip(parts, centres, strict=True)])
        if np.array_equal(moved, centres):
            break
        centres = moved
    return table_of(np.concatenate([centres, np.full(num_levels - used, centres[-1])]))


def fit_grid(values: np.ndarray, num_levels: int) -> GridCodebook:
    """Return the grid whose step gives the least squared error among 200 steps up to the one that spans all values.

    Raises:
        InputError: the values are not finite, or the number of levels is out of range.
    """
    flat = np.asarray(values, dtype=np.float64).ravel()
    if len(flat) == 0 or not np.isfinite(flat).all() or not 2 <= num_levels <= MAX_LEVELS:
        raise InputError(f"{len(flat)} values and {num_levels} levels: give finite values and 2 to {MAX_LEVELS} levels")
    widest = 2.0 * float(np.abs(flat).max()) / (num_levels - 1)
    if to_half(np.array([widest]))[0] == 0.0:
        return GridCodebook(num_levels, float(np.finfo(np.float16).smallest_subnormal))
    best: tuple[float, float] | None = None
    for step in np.unique(to_half(widest * np.linspace(0.05, 1.0, 200))):
        if step > 0.0:
            grid = GridCodebook(num_levels, float(step))
            error = float(np.square(flat - grid.values[assign(flat, grid)]).sum())
            best = min(best or (error, float(step)), (error, float(step)))
    return GridCodebook(num_levels, best[1] if best else widest)


def assign(
    values: np.ndarray, codebook: Codebook, *, rate: float = 0.0, level_bits: np.ndarray | None = None
) -> np.ndarray:
    """Return the level of each value: the nearest, or argmin (w - c_l)^2 + rate * bits_l with a price in bits a level.

    Raises:
        InputError: the prices do not fit the levels.
    """
    flat = np.asarray(values, dtype=np.float64).ravel()
    levels = codebook.values
    if level_bits is None or rate == 0.0:
        order = np.argsort(levels, kind="stable")
        edges = 0.5 * (levels[order][1:] + levels[order][:-1])
        return order[np.searchsorted(edges, flat)].reshape(np.shape(values))
    if np.shape(level_bits) != levels.shape:
        raise InputError(f"{np.shape(level_bits)} prices for {len(levels)} levels; give one a level")
    chosen = np.empty(len(flat), dtype=np.int64)
    size = max(1, (1 << 22) // len(levels))
    for start in range(0, len(flat), size):
        block = flat[start : start + size, None]
        chosen[start : start + size] = np.argmin((block - levels) ** 2 + rate * np.asarray(level_bits), axis=1)
    return chosen.reshape(np.shape(values))


def _best_partition(points: np.ndarray, weights: np.ndarray, num_parts: int) -> np.ndarray:
    """The means of the best cut of sorted weighted points into intervals, by dynamic programming."""
    num = len(points)
    w, s, q = (np.concatenate(([0.0], np.cumsum(x))) for x in (weights, weights * points, weights * points**2))
    start, stop = np.arange(num)[:, None], np.arange(1, num + 1)[None, :]
    mass = np.maximum(w[stop] - w[start], 1e-300)
    cost = np.where(start < stop, (q[stop] - q[start]) - (s[stop] - s[start]) ** 2 / mass, np.inf)
    best, cuts = cost[0], []
    for _ in range(1, num_parts):
        total = np.concatenate(([np.inf], best[:-1]))[:, None] + cost
        cuts.append(np.argmin(total, axis=0))
        best = total[cuts[-1], np.arange(num)]
    edges = [num]
    for cut in reversed(cuts):
        edges.append(int(cut[edges[-1] - 1]))
    edges = [*edges, 0][::-1]
    return np.array([(s[b] - s[a]) / (w[b] - w[a]) for a, b in pairwise(edges) if b > a])


def _check_halves(values: tuple[float, ...]) -> None:
    array = np.array(values, dtype=np.float64)
    if not np.isfinite(array).all() or not np.array_equal(to_half(array), array):
        raise InputError("a codebook holds finite fp16 numbers only; round the values first (to_half)")
