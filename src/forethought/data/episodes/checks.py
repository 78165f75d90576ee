"""What makes flat arrays episodes: checks of shapes, boundaries, flags and finite numbers, each with one message."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import DataError

if TYPE_CHECKING:
    from forethought.data.episodes.table import Episodes

MAX_NAME = 64
_NAME = re.compile(rf"[A-Za-z][A-Za-z0-9_]{{0,{MAX_NAME - 1}}}")
_KINDS = "biuf"
_CHUNK = 1 << 20


def check_name(name: str) -> str:
    """Return a name that may become a file: a letter, then up to 63 letters, digits and underscores.

    Raises:
        DataError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise DataError(
            f"the array name {name[:80]!r} cannot be stored; use a letter and then up to {MAX_NAME - 1} letters, "
            "digits and underscores"
        )
    return name


def check_layout(episodes: Episodes) -> None:
    """Check that arrays, finals, starts, lengths and flags fit one another.

    Raises:
        DataError: they do not; the message names what does not fit.
    """
    source, count, total = episodes.source, len(episodes.starts), _check_ends(episodes)
    for name, value in episodes.arrays.items():
        _check_rows(source, name, value, total, "steps")
    for name, value in episodes.finals.items():
        _check_rows(source, f"final {name}", value, count, "episodes")
        if name not in episodes.arrays or episodes.arrays[name].shape[1:] != value.shape[1:]:
            raise DataError(f"{source}: the final {name} of shape {value.shape[1:]} matches no array of that name")
    if "rewards" in episodes.arrays and episodes.rewards.ndim != 1:
        raise DataError(f"{source}: rewards have shape {episodes.rewards.shape}; give one number a step, shape (N,)")
    if episodes.fps is not None and not 0 < episodes.fps < float("inf"):
        raise DataError(f"{source}: fps is {episodes.fps}; give steps a second above 0, or None")


def _check_ends(episodes: Episodes) -> int:
    source, count = episodes.source, len(episodes.starts)
    if episodes.starts.ndim != 1 or not count or not episodes.arrays:
        raise DataError(f"{source} holds no episodes; give at least one episode of at least one step and one array")
    for name in ("lengths", "terminated", "truncated"):
        shape = getattr(episodes, name).shape
        if shape != (count,):
            raise DataError(f"{source}: {name} has shape {shape} for {count} episodes; give one entry an episode")
    if episodes.lengths.min() < 1:
        raise DataError(f"{source}: episode {int(episodes.lengths.argmin())} has no steps; leave empty episodes out")
    total = int(episodes.lengths.sum())
    expected = np.concatenate(([0], np.cumsum(episodes.lengths)[:-1]))
    if not np.array_equal(episodes.starts, expected):
        raise DataError(f"{source}: the episodes' starts and lengths leave gaps or overlap; starts must be {expected}")
    return total


def check_finite(name: str, value: NDArray[Any], starts: NDArray[np.int64], *, source: str) -> None:
    """Check a float array for NaN and infinities, a bounded part at a time.

    Raises:
        DataError: the message names the episode and the step in it.
    """
    if value.dtype.kind != "f":
        return
    rows = max(1, _CHUNK // max(1, int(np.prod(value.shape[1:], dtype=np.int64))))
    for begin in range(0, len(value), rows):
        part = np.asarray(value[begin : begin + rows]).reshape(len(value[begin : begin + rows]), -1)
        bad = ~np.isfinite(part).all(axis=1)
        if bad.any():
            row = begin + int(bad.argmax())
            episode = int(np.searchsorted(starts, row, side="right")) - 1
            raise DataError(
                f"{source}: {name} is not finite at step {row - int(starts[episode])} of episode {episode} "
                f"(row {row}); remove or repair that episode"
            )


def _check_rows(source: str, name: str, value: NDArray[Any], rows: int, of: str) -> None:
    if value.dtype.kind not in _KINDS or value.ndim < 1:
        raise DataError(f"{source}: {name} has type {value.dtype} and shape {value.shape}; give arrays of numbers")
    if len(value) != rows:
        raise DataError(f"{source}: {name} has {len(value)} rows for {rows} {of}; the file is cut or arrays are mixed")
