"""The five-parameter scaling law in size and data: loss = E + A / n ** alpha + B / d ** beta.

Shapes: N points, R problems, 5 parameters theta = (log E, log A, alpha, log B, beta), sizes and data taken relative to
their geometric means.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from forethought.core.errors import InputError
from forethought.core.rng import generator
from forethought.stats.levenberg import Array, Problems, minimise
from forethought.stats.powerlaw import check_settings, checked_points

_EXPONENT_STARTS = (0.1, 0.3, 0.6, 1.2)
_NAMES = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True)
class ChinchillaLaw:
    """The fitted parameters, named as in Hoffmann et al. 2022, their bootstrap intervals and standard errors."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    intervals: dict[str, tuple[float, float]]
    standard_errors: dict[str, float]
    residual_sd: float

    def predict(self, n: ArrayLike, d: ArrayLike) -> Any:
        """Return the loss at sizes n and data d, broadcast against each other."""
        sizes, data = np.asarray(n, dtype=np.float64), np.asarray(d, dtype=np.float64)
        values = self.E + self.A * sizes**-self.alpha + self.B * data**-self.beta
        return float(values) if np.ndim(values) == 0 else values

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **{name: getattr(self, name) for name in _NAMES},
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "standard_errors": dict(self.standard_errors),
            "residual_sd": self.residual_sd,
        }


def fit_chinchilla(
    n: ArrayLike,
    d: ArrayLike,
    loss: ArrayLike,
    *,
    seed: int = 0,
    num_bootstrap: int = 200,
    level: float = 0.95,
    delta: float = 1e-3,
) -> ChinchillaLaw:
    """Fit sizes n, data d and losses, each (N,), by the sum of Huber losses of log loss over a grid of starts.

    The sum and not the mean of the losses is what Besiroglu et al. 2024 (arXiv 2404.10102) found missing in the first
    fit; here the stopping rule is relative to the objective, so its scale cannot stop the search early. Intervals are
    percentiles over `num_bootstrap` data sets simulated from the fit.

    Raises:
        InputError: lengths differ, a value is not finite and positive, fewer than 6 points or 3 sizes or 3 data, or a
            setting is out of range (num_bootstrap at least 1).
    """
    n_N, loss_N, _ = checked_points(n, loss, None)
    d_N, _, _ = checked_points(d, loss, None)
    check_settings(None, num_bootstrap, level, delta)
    if num_bootstrap < 1:
        raise InputError("num_bootstrap 0 leaves nothing to take intervals from; give 100 or more")
    if len(loss_N) < 6:
        raise InputError(f"five parameters need at least 6 points; given {len(loss_N)}")
    model = _Model(np.log(n_N), np.log(d_N))
    thresholds = np.full(len(loss_N), delta)
    starts = model.starts(loss_N)
    target = np.repeat(np.log(loss_N)[None], len(starts), axis=0)
    bounds = model.bounds(float(loss_N.max()))
    theta_G5, values_G = minimise(
        model, Problems(target, np.ones_like(target), thresholds), starts, bounds, iterations=500
    )
    best = theta_G5[values_G.argmin()]
    mean_N = np.exp(model(best[None])[0][0])
    sd = float(np.sqrt(((loss_N / mean_N - 1.0) ** 2).sum() / (len(loss_N) - 5)))
    draws = generator(seed, "stats.chinchilla.bootstrap").standard_normal((num_bootstrap, len(loss_N)))
    replicas = np.log(np.maximum(mean_N * (1.0 + sd * draws), mean_N * 1e-6))
    again, _ = minimise(
        model,
        Problems(replicas, np.ones_like(replicas), thresholds),
        np.repeat(best[None], len(replicas), axis=0),
        bounds,
        iterations=100,
    )
    samples = model.parameters(again)
    ends = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    values = (float(value) for value in model.parameters(best[None])[0])
    return ChinchillaLaw(
        *values,
        intervals={name: (float(ends[0, i]), float(ends[1, i])) for i, name in enumerate(_NAMES)},
        standard_errors={name: float(samples[:, i].std()) for i, name in enumerate(_NAMES)},
        residual_sd=sd,
    )


class _Model:
    """The law on theta, with log n and log d centred."""

    def __init__(self, log_n: Array, log_d: Array) -> None:
        self.shift_n, self.shift_d = float(log_n.mean()), float(log_d.mean())
        self.n, self.d = log_n - self.shift_n, log_d - self.shift_d

    def __call__(self, theta: Array) -> tuple[Array, Array]:
        e = np.exp(theta[:, :1]) * np.ones_like(self.n)
        a = np.exp(theta[:, 1:2] - theta[:, 2:3] * self.n)
        b = np.exp(theta[:, 3:4] - theta[:, 4:5] * self.d)
        total = e + a + b
        return np.log(total), np.stack([e, a, -a * self.n, b, -b * self.d], axis=2) / total[:, :, None]

    def starts(self, loss_N: Array) -> Array:
        """For each pair of exponents the other three by linear least squares (variable projection)."""
        rows: list[list[float]] = []
        for alpha, beta in itertools.product(_EXPONENT_STARTS, repeat=2):
            columns = np.stack([np.ones_like(self.n), np.exp(-alpha * self.n), np.exp(-beta * self.d)], axis=1)
            solution = np.linalg.lstsq(columns / loss_N[:, None], np.ones_like(loss_N), rcond=None)[0]
            linear = np.maximum(solution, 1e-3 * float(loss_N.min()))
            rows.append([math.log(linear[0]), math.log(linear[1]), alpha, math.log(linear[2]), beta])
        return np.array(rows)

    def bounds(self, largest: float) -> Array:
        top = math.log(largest) + 3.0
        low = top - 40.0
        return np.array([(low, top), (low, top), (0.005, 5.0), (low, top), (0.005, 5.0)])

    def parameters(self, theta: Array) -> Array:
        """Rows (E, A, B, alpha, beta) in the units of n and d."""
        a = np.exp(theta[:, 1] + theta[:, 2] * self.shift_n)
        b = np.exp(theta[:, 3] + theta[:, 4] * self.shift_d)
        return np.stack([np.exp(theta[:, 0]), a, b, theta[:, 2], theta[:, 4]], axis=1)
