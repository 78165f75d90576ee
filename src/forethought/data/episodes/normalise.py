"""Normalisers: an affine map a feature, fitted on the data, with a floor for features that hardly move.

    mean_std    (x - mean) / max(std, floor)
    min_max     2 (x - (low + high) / 2) / max(high - low, floor), so that the data fills -1 to 1

A constant feature would divide by zero; the floor turns it into a constant near 0 instead. `clip` bounds what comes out
(arXiv 2410.05364 does not say; 8 keeps one broken sensor from leaving the range a network was trained on).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.core.errors import ArtefactError, ConfigError, DataError

Array = NDArray[Any]
Floats = NDArray[np.float32]
Kind = Literal["mean_std", "min_max"]
_ROWS = 1 << 16


@dataclass(frozen=True)
class Normaliser:
    """`(x - shift) / scale`, clipped to ±clip; `shift` and `scale` are float32 of the shape of one feature vector."""

    shift: Floats
    scale: Floats
    clip: float | None = None

    def __post_init__(self) -> None:
        sound = np.isfinite(self.shift).all() and np.isfinite(self.scale).all() and bool((self.scale > 0).all())
        if self.shift.shape != self.scale.shape or not sound:
            raise ConfigError(
                f"a normaliser needs a finite shift and a scale above 0 of one shape; got {self.shift.shape} "
                f"and {self.scale.shape}; fit it again on finite data"
            )

    @property
    def size(self) -> int:
        """The number of features."""
        return int(self.shift.size)

    def normalise(self, values: ArrayLike) -> Floats:
        """Return values[..., features] in normalised units, float32.

        Raises:
            DataError: the last axes are not those of the features.
        """
        array = self._checked(values)
        normal = (array - self.shift) / self.scale
        return normal if self.clip is None else np.clip(normal, -self.clip, self.clip)

    def restore(self, values: ArrayLike) -> Floats:
        """Return normalised values in the units of the data; clipped values come back as the bound.

        Raises:
            DataError: the last axes are not those of the features.
        """
        return self._checked(values) * self.scale + self.shift

    def arrays(self) -> dict[str, Floats]:
        """Return the state as arrays, to be saved beside a model."""
        return {"shift": self.shift, "scale": self.scale, "clip": np.array(self.clip or 0.0, np.float32)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> Normaliser:
        """Return the normaliser that `arrays` described.

        Raises:
            ArtefactError: an array is missing.
        """
        missing = {"shift", "scale", "clip"} - set(arrays)
        if missing:
            raise ArtefactError(f"the saved normaliser lacks {', '.join(sorted(missing))}; save the model again")
        shift, scale = (np.asarray(arrays[name], np.float32) for name in ("shift", "scale"))
        return cls(shift, scale, float(np.asarray(arrays["clip"])) or None)

    def _checked(self, values: ArrayLike) -> Floats:
        array = np.asarray(values, dtype=np.float32)
        if self.shift.ndim and array.shape[-self.shift.ndim :] != self.shift.shape:
            raise DataError(
                f"values of shape {array.shape} do not end in the {self.shift.shape} features that the normaliser was "
                "fitted on; give data of the same layout"
            )
        return array


def fit_normaliser(
    values: Array, *, kind: Kind = "mean_std", floor: float = 1e-2, clip: float | None = 8.0
) -> Normaliser:
    """Fit a normaliser to values[N, ...], reading a bounded part at a time (it may be memory-mapped).

    Raises:
        ConfigError: floor or clip is not above 0, or the kind is unknown.
        DataError: there are no rows, or they are not finite.
    """
    if kind not in ("mean_std", "min_max") or floor <= 0 or (clip is not None and clip <= 0):
        raise ConfigError(f"kind {kind!r}, floor {floor}, clip {clip}: give mean_std or min_max, and numbers above 0")
    if not len(values):
        raise DataError("a normaliser cannot be fitted to no rows; give at least one")
    shift, scale = _mean_std(values) if kind == "mean_std" else _min_max(values)
    if not (np.isfinite(shift).all() and np.isfinite(scale).all()):
        raise DataError("a normaliser cannot be fitted to NaN or infinite values; call require_finite to find them")
    # Compared after the cast: a scale that underflows in float32 would divide by zero.
    return Normaliser(shift.astype(np.float32), np.maximum(scale.astype(np.float32), np.float32(floor)), clip)


def identity_normaliser(shape: tuple[int, ...]) -> Normaliser:
    """Return the normaliser that changes nothing, for data that is already in range."""
    return Normaliser(np.zeros(shape, np.float32), np.ones(shape, np.float32))


def _mean_std(values: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    origin = np.asarray(values[0], dtype=np.float64)
    total, square = np.zeros_like(origin), np.zeros_like(origin)
    for begin in range(0, len(values), _ROWS):
        # Around the first row, so that a large offset does not cancel the variance.
        part = np.asarray(values[begin : begin + _ROWS], dtype=np.float64) - origin
        total += part.sum(axis=0)
        square += np.square(part).sum(axis=0)
    mean = total / len(values)
    return mean + origin, np.sqrt(np.maximum(square / len(values) - mean**2, 0.0))


def _min_max(values: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low = high = np.asarray(values[0], dtype=np.float64)
    for begin in range(0, len(values), _ROWS):
        part = np.asarray(values[begin : begin + _ROWS], dtype=np.float64)
        low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
    return (low + high) / 2, (high - low) / 2
