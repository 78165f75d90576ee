"""The time of one forward pass as a function of its number of rows and of the context, as measured.

Shape suffixes: N rows, S sequences, P pages of a sequence, M rows whose logits are wanted, C contexts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import model_validator

from forethought.core.config import config
from forethought.core.errors import InputError
from forethought.nn.rows import PagedModel, Rows

Floats = NDArray[np.float64]
SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)


@config
class Curve:
    """Seconds of one pass at each measured context (outer) and number of rows (inner), linear in between.

    Beyond the last measured point the last slope goes on, as far as it rises; below the first the first value holds. A
    pass of no rows takes no time.

    Raises:
        ConfigError: sizes or contexts do not rise, or the seconds do not fit them or are negative.
    """

    sizes: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    contexts: tuple[int, ...] = (0,)

    @model_validator(mode="after")
    def _check(self) -> Curve:
        for name, values, least in (("sizes", self.sizes, 1), ("contexts", self.contexts, 0)):
            rising = all(low < high for low, high in pairwise(values))
            if not values or values[0] < least or not rising:
                raise ValueError(f"{name} {list(values)} must be at least one number, from {least} on and rising")
        fits = len(self.seconds) == len(self.contexts) and all(len(row) == len(self.sizes) for row in self.seconds)
        if not fits or any(value < 0 for row in self.seconds for value in row):
            raise ValueError("seconds must hold, for every context, one number that is not negative for every size")
        return self

    @classmethod
    def of(cls, points: Mapping[int, float]) -> Curve:
        """Return the curve through {rows: seconds}, the same at every context."""
        return cls(sizes=tuple(sorted(points)), seconds=(tuple(points[size] for size in sorted(points)),))

    def at(self, context: float = 0.0) -> Timing:
        """Return the curve at one context."""
        values_CN = np.asarray(self.seconds, dtype=np.float64)
        if len(self.contexts) == 1:
            return Timing(np.asarray(self.sizes, dtype=np.float64), values_CN[0])
        contexts = np.asarray(self.contexts, dtype=np.float64)
        upper = int(np.clip(np.searchsorted(contexts, context), 1, len(contexts) - 1))
        share = max(0.0, (context - contexts[upper - 1]) / (contexts[upper] - contexts[upper - 1]))
        slope_N = values_CN[upper] - values_CN[upper - 1]
        # Past the last context only growth is carried on: a falling slope is noise there and would end below zero.
        slope_N = np.maximum(slope_N, 0.0) if share > 1.0 else slope_N
        return Timing(np.asarray(self.sizes, dtype=np.float64), values_CN[upper - 1] + share * slope_N)

    def __call__(self, num_rows: float, context: float = 0.0) -> float:
        """Return the seconds of a pass of so many rows."""
        return float(self.at(context)(num_rows))


@dataclass(frozen=True)
class Timing:
    """A curve at one context: seconds by number of rows, for whole arrays of them at once."""

    sizes_N: Floats
    seconds_N: Floats

    def __call__(self, num_rows: ArrayLike) -> Floats:
        """Return the seconds of passes of so many rows, in the same shape."""
        rows = np.asarray(num_rows, dtype=np.float64)
        seconds = np.interp(rows, self.sizes_N, self.seconds_N)
        if len(self.sizes_N) > 1:
            slope = (self.seconds_N[-1] - self.seconds_N[-2]) / (self.sizes_N[-1] - self.sizes_N[-2])
            seconds = seconds + max(slope, 0.0) * np.maximum(rows - self.sizes_N[-1], 0.0)
        return np.where(rows > 0.0, seconds, 0.0)

    def scaled(self, factor: float) -> Timing:
        """Return the curve with all times multiplied."""
        return Timing(self.sizes_N, self.seconds_N * factor)


def measure(
    model: PagedModel,
    sizes: Sequence[int] = SIZES,
    repeats: int = 7,
    *,
    contexts: Sequence[int] = (128,),
    greedy: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Curve:
    """Time passes of these sizes behind these contexts: the median of `repeats` after one to warm up.

    A pass of more rows or a longer context holds all the work of a smaller one, so no time may exceed that of a larger
    pass: where it does the machine was busy elsewhere, and the larger one's time is taken. The sizes take turns, so
    that a slow moment does not fall on one of them. The logits of every row are asked for, or its likeliest token where
    `greedy`. Sizes and contexts that do not fit the pool are left out. The
    leading pages of the pool are overwritten: measure before any request is served.

    Raises:
        InputError: nothing fits the pool, or repeats is below 1.
    """
    room = min(model.num_pages * model.page_size, model.config.max_positions)
    sizes = sorted({size for size in sizes if 1 <= size <= room})
    contexts = sorted({context for context in contexts if 0 <= context <= room - max(sizes, default=0)})
    if not sizes or not contexts or repeats < 1:
        raise InputError(
            f"nothing to measure: of the sizes and contexts given none fits {room} positions, or repeats {repeats} "
            "is below 1; give smaller ones or a larger pool"
        )
    call = model.greedy if greedy else model.logits
    seconds = {(context, size): list[float]() for context in contexts for size in sizes}
    for repeat in range(repeats + 1):
        for (context, size), taken in seconds.items():
            rows = _rows(model, context, size)
            began = clock()
            call(rows)
            if repeat:
                taken.append(clock() - began)
    times_CN = np.array([[np.median(seconds[context, size]) for size in sizes] for context in contexts])
    times_CN = np.flip(np.minimum.accumulate(np.minimum.accumulate(np.flip(times_CN), axis=0), axis=1))
    return Curve(sizes=tuple(sizes), seconds=tuple(map(tuple, times_CN.tolist())), contexts=tuple(contexts))


def _rows(model: PagedModel, context: int, size: int) -> Rows:
    """One sequence that reads `size` more tokens behind `context`."""
    positions_N = np.arange(context, context + size, dtype=np.int32)
    num_pages = -(-(context + size) // model.page_size)
    return Rows(
        tokens_N=(positions_N % model.config.vocab_size).astype(np.int32),
        positions_N=positions_N,
        slots_N=positions_N,
        sequence_N=np.zeros(size, dtype=np.int32),
        visible_N=positions_N + np.int32(1),
        pages_SP=np.arange(num_pages, dtype=np.int32).reshape(1, -1),
        logits_M=np.arange(size, dtype=np.int32),
    )
