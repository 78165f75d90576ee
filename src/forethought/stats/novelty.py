"""Calibrated novelty of an error: how far from what was normal, with a valid p-value and a drift alarm.

Errors are any non-negative numbers (a prediction error, a share of rejected tokens); nothing here knows where they
come from. Raw errors are heavy-tailed, so z is taken on their logarithm with a robust centre and scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.core.errors import ArtefactError, InputError
from forethought.core.rng import generator

_MAD_TO_SD = 1.4826
_LARGEST = 1e300  # stands for infinity where the state must remain a JSON number


@dataclass(frozen=True)
class Novelty:
    """The calibration of an error on nominal data: sorted errors_N, and centre and scale of their logarithm."""

    errors_N: NDArray[np.float64] = field(repr=False)
    centre: float
    scale: float
    floor: float

    @classmethod
    def fit(cls, calibration_errors: ArrayLike) -> Novelty:
        """Calibrate on errors of held-out nominal data; the centre is the median, the scale 1.4826 MAD.

        Raises:
            InputError: fewer than 2 errors, one negative or not finite, or all the same.
        """
        errors = np.sort(np.asarray(calibration_errors, dtype=np.float64).ravel())
        if len(errors) < 2 or not (np.isfinite(errors) & (errors >= 0)).all():
            raise InputError(f"give at least 2 calibration errors, all finite and not negative; given {len(errors)}")
        if errors[0] == errors[-1]:
            raise InputError(f"all {len(errors)} calibration errors are {errors[0]:g}; nothing tells normal from novel")
        floor = float(errors[errors > 0][0])
        logs = np.log(np.maximum(errors, floor))
        centre = float(np.median(logs))
        spread = _MAD_TO_SD * float(np.median(np.abs(logs - centre)))
        # More than half the errors equal leaves no median deviation; the sd is then the best there is.
        return cls(errors, centre, spread or float(logs.std()) or 1.0, floor)

    def z(self, error: ArrayLike) -> Any:
        """Return the robust z of log error: a float for a scalar, else an array. NaN counts as infinitely novel."""
        values = np.asarray(error, dtype=np.float64)
        values = np.where(np.isnan(values), math.inf, np.maximum(values, self.floor))
        return _scalar_or_array((np.log(values) - self.centre) / self.scale)

    def conformal_p(self, error: ArrayLike) -> Any:
        """Return (1 + number of calibration errors at or above this one) / (n + 1), as a float or an array.

        Under exchangeability the p-value is at most alpha with probability at most alpha, at any n and with ties
        (Vovk et al. 2005). NaN counts as infinitely novel.
        """
        values = np.asarray(error, dtype=np.float64)
        below = np.searchsorted(self.errors_N, np.where(np.isnan(values), math.inf, values), side="left")
        num = len(self.errors_N)
        return _scalar_or_array(np.asarray((1.0 + num - below) / (num + 1.0), dtype=np.float64))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values that from_dict takes back without loss."""
        return {"errors": self.errors_N.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Novelty:
        """Build the calibration from what to_dict gave.

        Raises:
            ArtefactError: the values are not a calibration.
        """
        try:
            return cls.fit(values["errors"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"not a novelty calibration: {error!r}; write one with Novelty.to_dict") from error


@dataclass
class CUSUM:
    """A one-sided cumulative sum (Page 1954): value = max(0, value + score - drift), alarm above `threshold`.

    It accumulates small persistent excesses that no single score shows. The state is `value`; `reset` clears it.
    """

    threshold: float
    drift: float = 0.5
    value: float = 0.0

    @classmethod
    def calibrate(
        cls,
        scores: ArrayLike,
        *,
        false_alarm: float = 0.01,
        horizon: int = 1000,
        drift: float = 0.5,
        block: int = 1,
        num_paths: int = 4000,
        seed: int = 0,
    ) -> CUSUM:
        """Choose the threshold so that nominal data raise an alarm within `horizon` steps at rate `false_alarm`.

        Paths of `horizon` scores are resampled from nominal ones, in runs of `block` where neighbours are correlated;
        the threshold is the upper quantile of their highest values.

        Raises:
            InputError: fewer than 2 finite scores, or a setting is out of range.
        """
        pool = np.asarray(scores, dtype=np.float64).ravel()
        if len(pool) < 2 or not np.isfinite(pool).all():
            raise InputError(f"give at least 2 nominal scores, all finite; given {len(pool)}")
        if not 0 < false_alarm < 1 or (num_paths + 1) * false_alarm < 1:
            raise InputError(
                f"false_alarm {false_alarm} must lie between 0 and 1, and num_paths {num_paths} reach 1 / false_alarm"
            )
        if not (1 <= block <= len(pool) and horizon >= 1):
            raise InputError(f"block {block} must be from 1 to {len(pool)} and horizon {horizon} at least 1")
        rng = generator(seed, "stats.novelty.cusum")
        value, highest = np.zeros(num_paths), np.zeros(num_paths)
        position = np.zeros(num_paths, dtype=np.int64)
        for step in range(horizon):
            if step % block == 0:
                position = rng.integers(0, len(pool) - block + 1, size=num_paths)
            value = np.maximum(0.0, value + pool[position + step % block] - drift)
            np.maximum(highest, value, out=highest)
        rank = math.ceil((num_paths + 1) * (1.0 - false_alarm))
        return cls(threshold=float(np.sort(highest)[min(rank, num_paths) - 1]), drift=drift)

    def update(self, score: float) -> bool:
        """Take in one score and return whether the sum stands above the threshold; NaN counts as the largest."""
        excess = _LARGEST if math.isnan(score) else score
        self.value = min(max(0.0, self.value + excess - self.drift), _LARGEST)
        return self.value > self.threshold

    def reset(self) -> None:
        """Forget what was accumulated, after an alarm was acted on."""
        self.value = 0.0

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON values, the running sum included."""
        return {"threshold": self.threshold, "drift": self.drift, "value": self.value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CUSUM:
        """Build the detector from what to_dict gave.

        Raises:
            ArtefactError: the values are not a detector.
        """
        try:
            numbers = [float(values[name]) for name in ("threshold", "drift", "value")]
            if not all(map(math.isfinite, numbers)):
                raise ValueError(f"threshold, drift and value are {numbers}")
            return cls(*numbers)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"not a CUSUM detector: {error!r}; write one with CUSUM.to_dict") from error


def _scalar_or_array(values: NDArray[np.float64]) -> Any:
    return float(values) if values.ndim == 0 else values
