"""Limits of recipes and what they are worth: bands of laws, limits over members, size and data, measured multipliers.

Legend: P points, R simulated data sets, X places where a band is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from forethought.core import rng
from forethought.stats import data_efficiency
from forethought.stats.powerlaw import PowerLaw

Row = Mapping[str, Any]
Points = Sequence[tuple[int, float, float]]
_PLACES, _DRAWS, _SD_OF_95 = 24, 2000, 3.92


def band(law: PowerLaw, x: Sequence[float], *, level: float = 0.95) -> dict[str, list[float]]:
    """Return the law and its band over the range of x: places (X), the curve, and both ends, from its simulated fits.

    The band is pointwise; it is that of the curve, not of further points.
    """
    x_X = np.geomspace(min(x), max(x), _PLACES)
    curves_RX = law.samples[:, :1] * x_X ** -law.samples[:, 1:2] + law.samples[:, 2:]
    low_X, high_X = np.quantile(curves_RX, [(1 - level) / 2, (1 + level) / 2], axis=0)
    curve_X = np.asarray(law.predict(x_X))
    named = {"x": x_X, "curve": curve_X, "low": np.minimum(low_X, curve_X), "high": np.maximum(high_X, curve_X)}
    return {name: [float(value) for value in values] for name, values in named.items()}


def limit_points(laws: Mapping[str, Mapping[str, Any]]) -> list[tuple[int, float, float]]:
    """Return (data, limit, its sd) of the laws by data budget whose limit is identified."""
    found: list[tuple[int, float, float]] = []
    for data, law in laws.items():
        if law["asymptote"] is not None:
            low, high = law["intervals"]["asymptote"]
            found.append((int(data), float(law["asymptote"]), (high - low) / _SD_OF_95))
    return sorted(found)


def worth(
    recipe: str, points: Points, standard: Points, law: PowerLaw | str, *, seed: int = 0, limit: bool = False
) -> list[dict[str, Any]]:
    """Return how much data the standard recipe needs for each loss, through its law and by its measured losses.

    points, standard: (data, loss, sd of that loss); law: that of the standard recipe, or why there is none. `limit`
    marks losses that are themselves extrapolated.
    """
    reference = {data: (loss, sd) for data, loss, sd in standard}
    largest = max(data for data, _, _ in standard) / 1e6
    found: list[dict[str, Any]] = []
    for data, loss, sd in points:
        own = {"recipe": recipe, "data": data, "loss": loss, "limit": limit}
        own["measured"] = measured_multiplier(data, loss, sd, standard, seed=seed)
        if isinstance(law, str):
            own |= {"multiplier": None, "interval": [None, None], "identified": False, "reason": law}
            own["extrapolated"] = True
        else:
            standard_loss, standard_sd = reference.get(data, (None, 0.0))
            own |= data_efficiency(
                loss,
                law,
                data=data / 1e6,
                standard_loss=standard_loss,
                loss_sigma=sd,
                standard_sigma=standard_sd,
                largest_data=largest,
                seed=seed,
            ).to_dict()
        found.append(own)
    return found


def measured_multiplier(data: int, loss: float, sd: float, standard: Points, *, seed: int = 0) -> dict[str, Any]:
    """Return the multiplier by the standard recipe's measured losses, interpolated in log data, with its interval.

    No law is assumed. A loss below all that was measured is beyond reach: the multiplier is null and `at_least` is what
    the largest budget gives. An end of the interval that is beyond reach is null.
    """
    points = sorted(standard)
    draws_R = rng.generator(seed, "study.measured").standard_normal((_DRAWS, len(points) + 1))
    mean_P = np.array([value for _, value, _ in points])
    noisy_RP = mean_P + draws_R[:, 1:] * np.array([noise for _, _, noise in points])
    logs_P = np.log([float(each) for each, _, _ in points])
    reached = _reached(loss, mean_P, logs_P)
    ratios = [
        math.exp(_reached(loss + sd * draw, row_P, logs_P) - math.log(data))
        for draw, row_P in zip(draws_R[:, 0], noisy_RP, strict=True)
    ]
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    ends = [float(end) if math.isfinite(end) else None for end in (low, high)]
    if math.isfinite(reached):
        return {"multiplier": math.exp(reached) / data, "interval": ends, "at_least": None}
    return {"multiplier": None, "interval": ends, "at_least": points[-1][0] / data}


def _reached(loss: float, values_P: np.ndarray[Any, Any], logs_P: np.ndarray[Any, Any]) -> float:
    """The log of the data at which falling values reach a loss; infinity below the last, the first budget above it."""
    falling_P = np.minimum.accumulate(values_P)
    if loss < falling_P[-1]:
        return math.inf
    return float(np.interp(-loss, -falling_P, logs_P))
