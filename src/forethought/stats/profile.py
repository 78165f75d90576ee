"""Intervals for the parameters of a power law: profile likelihood, calibrated by a parametric bootstrap.

With four points the estimate of an asymptote is skewed and percentile intervals miss. The rise of the objective when
one parameter is held (its deviance) is nearly pivotal even there, so an interval is every value whose deviance on the
observed data stays below the quantile that the same deviance reaches in data simulated from the fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forethought.core.rng import generator
from forethought.stats.lawfit import AMPLITUDE, ASYMPTOTE, EXPONENT, Design, solve
from forethought.stats.levenberg import Array

_FINEST = 1e-7
_COARSE = 64
_SECTIONS = 24
_REFINEMENTS = 2


@dataclass(frozen=True)
class Observed:
    """A fitted data set: y_N, theta_3 in `design`, its objective, and the residual degrees of freedom."""

    design: Design
    y_N: Array
    theta_3: Array
    value: float
    degrees_of_freedom: int
    start_spread: float = 0.0

    @property
    def prediction_N(self) -> Array:
        """Return the fitted curve at the points."""
        return self.design.curve(self.theta_3[None])[0]

    @property
    def squares(self) -> float:
        """Return the sum of squared residuals of log y."""
        return float(((np.log(self.prediction_N) - np.log(self.y_N)) ** 2).sum())

    def deviance(self, held_R: Array, free_R: Array) -> Array:
        """Return the rise of the objective, in squared sigmas; sigma is the residual's own where none was given."""
        rise = 2.0 * np.maximum(held_R - free_R, 0.0)
        if self.design.noise_N is not None:
            return rise
        return rise * max(self.degrees_of_freedom, 1) / (2.0 * np.maximum(free_R, 1e-300))

    def in_frame(self, held: int) -> tuple[Design, Array]:
        """Return the design and theta in which the parameter can be held: the amplitude needs x = 1 as its unit."""
        if held != AMPLITUDE:
            return self.design, self.theta_3
        theta = self.theta_3.copy()
        theta[AMPLITUDE] *= np.exp(theta[EXPONENT] * self.design.shift)
        return self.design.uncentred(), theta


def simulate(observed: Observed, noise_N: Array, *, seed: int, num_bootstrap: int) -> Array:
    """Return data sets (R, N) drawn from the fit: its prediction with log-scale noise; points are never resampled.

    Noise of sd s on y is s / y on log y to first order; drawing it additively on y keeps that exact.
    """
    mean_N = observed.prediction_N
    draws_RN = generator(seed, "stats.powerlaw.bootstrap").standard_normal((num_bootstrap, len(mean_N)))
    return np.maximum(mean_N * (1.0 + draws_RN * noise_N), mean_N * 1e-6)


def critical_deviance(observed: Observed, replicas_RN: Array, free_R: Array, held: int, level: float) -> float:
    """Return the level-quantile of the deviance of the truth over the simulated data sets."""
    design, theta_3 = observed.in_frame(held)
    _, held_R = solve(design, replicas_RN, held, float(theta_3[held]), iterations=25)
    deviance = np.sort(observed.deviance(held_R, free_R))
    rank = min(int(np.ceil((len(deviance) + 1) * level)), len(deviance))
    return float(deviance[rank - 1])


def interval(observed: Observed, held: int, critical: float) -> tuple[float, float]:
    """Return the ends, in the parameter's own units, between which its deviance stays at or below `critical`.

    An end that is not met inside the allowed range is the range's end: 0 for amplitude and asymptote.
    """
    design, theta_3 = observed.in_frame(held)
    lowest, highest = (float(bound) for bound in design.bounds_P2[held])
    centre = float(theta_3[held])
    ends: list[float] = []
    for limit in (lowest, highest):
        reach = max(abs(limit - centre), 1e-280)
        finest = min(max(_FINEST * abs(centre), 1e-16 * reach), reach)
        distances = np.geomspace(finest, reach, _COARSE) * np.sign(limit - centre)
        inside, outside = 0.0, 0.0
        for refinement in range(_REFINEMENTS + 1):
            if refinement:
                distances = np.linspace(inside, outside, _SECTIONS + 1)[1:]
            beyond = _deviance_at(observed, design, held, centre + distances) > critical
            if not beyond.any():
                inside = outside = float(distances[-1])
                break
            first = int(beyond.argmax())
            outside = float(distances[first])
            inside = float(distances[first - 1]) if first else inside
        ends.append(centre + outside)
    if held == EXPONENT:
        return ends[0], ends[1]
    return (0.0 if ends[0] <= lowest * (1 + 1e-9) else ends[0] * design.scale), ends[1] * design.scale


def _deviance_at(observed: Observed, design: Design, held: int, values: Array) -> Array:
    y_RN = np.repeat(observed.y_N[None], len(values), axis=0)
    _, held_R = solve(design, y_RN, held, values)
    return observed.deviance(held_R, np.full(len(values), observed.value))


PARAMETERS = {"amplitude": AMPLITUDE, "exponent": EXPONENT, "asymptote": ASYMPTOTE}
