"""Power laws with an asymptote, fitted to few noisy points, with intervals that say when nothing can be said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import forethought.stats.identify as identify
import forethought.stats.profile as profile
from forethought.core.errors import InputError
from forethought.stats.lawfit import ASYMPTOTE, Design, solve, solve_from_every_start
from forethought.stats.levenberg import Array

_EXACT = 1e-9  # residual sd of log y below which the points lie on the curve to rounding


@dataclass(frozen=True)
class PowerLaw:
    """The fit of y = amplitude * x ** -exponent + asymptote.

    `interval` is that of the asymptote, `intervals` has all three by name; an end at 0 means that nothing in the data
    excludes it. Where `identified` is false, `reason` says why, and the asymptote must not be quoted.
    """

    amplitude: float
    exponent: float
    asymptote: float
    interval: tuple[float, float]
    identified: bool
    reason: str
    intervals: dict[str, tuple[float, float]]
    level: float
    residuals: tuple[float, ...]
    noise: tuple[float, ...]
    leave_one_out: tuple[float, ...]
    degrees_of_freedom: int
    start_spread: float
    objective: float
    fixed_exponent: bool
    samples: NDArray[np.float64] = field(repr=False, compare=False)

    def predict(self, x: ArrayLike) -> Any:
        """Return the curve at x: a float for a scalar, else an array of x's shape."""
        values = self.amplitude * np.asarray(x, dtype=np.float64) ** -self.exponent + self.asymptote
        return float(values) if np.ndim(values) == 0 else values

    def inverse(self, y: float) -> float:
        """Return the x at which the curve falls to y: infinity at or below the asymptote."""
        return _inverse(self.amplitude, self.exponent, self.asymptote, y)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the asymptote is null where it is not identified."""
        return {
            "amplitude": self.amplitude,
            "exponent": self.exponent,
            "asymptote": self.asymptote if self.identified else None,
            "asymptote_estimate": self.asymptote,
            "identified": self.identified,
            "reason": self.reason,
            "level": self.level,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "residuals_in_sigma": list(self.residuals),
            "sigma": list(self.noise),
            "leave_one_out": list(self.leave_one_out),
            "degrees_of_freedom": self.degrees_of_freedom,
            "start_spread": self.start_spread,
            "fixed_exponent": self.fixed_exponent,
        }

    def __str__(self) -> str:
        """Return one line for a reader: the asymptote with its interval, or why there is none."""
        if not self.identified:
            return f"asymptote not identified: {self.reason}"
        low, high = self.interval
        return f"{self.asymptote:.6g} ({100 * self.level:g}% interval {low:.6g} to {high:.6g})"


def fit_power_law(
    x: ArrayLike,
    y: ArrayLike,
    sigma: ArrayLike | None = None,
    *,
    exponent: float | None = None,
    seed: int = 0,
    num_bootstrap: int = 1000,
    level: float = 0.95,
    delta: float = 1e-3,
) -> PowerLaw:
    """Fit y = amplitude * x ** -exponent + asymptote with all three parameters non-negative.

    x, y: (N,) positive, at least 3 distinct x. sigma: the sd of each y over seeds, one number or (N,); without it the
    sd is taken from the residuals. The objective is the sum of Huber losses of the residual of log y (threshold
    `delta`, never below three known sigmas), over a grid of starts by variable projection (Hoffmann et al. 2022;
    Besiroglu et al. 2024 for the sum). `exponent` fixes the exponent, as theory does for the mean of K members (1).
    Intervals: profile likelihood calibrated by `num_bootstrap` simulated data sets; 0 takes the asymptotic quantile.

    Raises:
        InputError: lengths differ, a value is not finite and positive, or fewer than 3 distinct x.
    """
    x_N, y_N, sigma_N = checked_points(x, y, sigma)
    check_settings(exponent, num_bootstrap, level, delta)
    observed = observe(design_of(x_N, y_N, sigma_N, exponent=exponent, delta=delta), y_N)
    noise_N = noise_of(observed)
    replicas_RN = profile.simulate(observed, noise_N, seed=seed, num_bootstrap=num_bootstrap)
    return conclude(observed, noise_N, replicas_RN, level)


def observe(design: Design, y_N: Array) -> profile.Observed:
    """Fit one data set from every start of the grid."""
    theta_G3, values_G = solve_from_every_start(design, y_N)
    ends = design.parameters(theta_G3)[values_G <= values_G[0] * (1 + 1e-6) + 1e-20, ASYMPTOTE]
    dof = len(y_N) - design.num_parameters
    return profile.Observed(design, y_N, theta_G3[0], float(values_G[0]), dof, float(np.ptp(ends[:5])))


def conclude(observed: profile.Observed, noise_N: Array, replicas_RN: Array, level: float) -> PowerLaw:
    """Turn a fit and the data sets simulated from it (none: asymptotic quantiles) into a law with its intervals."""
    design, y_N, x_N = observed.design, observed.y_N, np.exp(observed.design.log_x_N)
    intervals, samples = _intervals(observed, noise_N, replicas_RN, level)
    findings = identify.Findings(
        x_N=x_N, y_N=y_N, noise_N=noise_N, intervals=intervals, start_spread=observed.start_spread, level=level
    )
    reason = identify.why_not(observed, findings)
    amplitude, exponent, asymptote = (float(value) for value in design.parameters(observed.theta_3[None])[0])
    relative_N = y_N / observed.prediction_N - 1.0
    return PowerLaw(
        amplitude=amplitude,
        exponent=exponent,
        asymptote=asymptote,
        interval=intervals["asymptote"],
        identified=not reason,
        reason=reason,
        intervals=intervals,
        level=level,
        residuals=tuple(float(value) for value in relative_N / np.maximum(noise_N, 1e-300)),
        noise=tuple(float(value) for value in noise_N * y_N),
        leave_one_out=_leave_one_out(design, y_N, x_N),
        degrees_of_freedom=observed.degrees_of_freedom,
        start_spread=observed.start_spread,
        objective=observed.value,
        fixed_exponent=design.exponent is not None,
        samples=samples,
    )


def checked_points(x: ArrayLike, y: ArrayLike, sigma: ArrayLike | None) -> tuple[Array, Array, Array | None]:
    """Return x, y and sigma as arrays of one length.

    Raises:
        InputError: lengths differ, a value is not finite and positive, or fewer than 3 distinct x.
    """
    x_N, y_N = _vector("x", x), _vector("y", y)
    if len(x_N) != len(y_N):
        raise InputError(f"x has {len(x_N)} values and y has {len(y_N)}; give one y for each x")
    num_distinct = len(np.unique(x_N))
    if num_distinct < 3:
        raise InputError(f"a power law with an asymptote needs at least 3 distinct x; given {num_distinct}")
    if sigma is None:
        return x_N, y_N, None
    sigma_N = _vector("sigma", np.broadcast_to(sigma, y_N.shape) if np.ndim(sigma) == 0 else sigma)
    if len(sigma_N) != len(y_N):
        raise InputError(f"sigma has {len(sigma_N)} values for {len(y_N)} points; give one number or one for each")
    return x_N, y_N, sigma_N


def design_of(x_N: Array, y_N: Array, sigma_N: Array | None, *, exponent: float | None, delta: float) -> Design:
    """Return the design of checked points; noise becomes relative, as the residual is one of log y."""
    log_x_N = np.log(x_N)
    return Design(
        log_x_N=log_x_N,
        noise_N=None if sigma_N is None else sigma_N / y_N,
        delta=delta,
        exponent=exponent,
        shift=float(log_x_N.mean()),
        scale=float(y_N.max()),
    )


def noise_of(observed: profile.Observed) -> Array:
    """Return the sd of log y at each point: the given one, else the root mean square residual per degree of freedom."""
    if observed.design.noise_N is not None:
        return observed.design.noise_N
    squares = observed.squares
    sd = math.sqrt(squares / observed.degrees_of_freedom) if observed.degrees_of_freedom else math.sqrt(squares)
    return np.full(len(observed.y_N), sd)


def _intervals(
    observed: profile.Observed, noise_N: Array, replicas_RN: Array, level: float
) -> tuple[dict[str, tuple[float, float]], Array]:
    design = observed.design
    estimates = design.parameters(observed.theta_3[None])[0]
    names = [name for name in profile.PARAMETERS if name != "exponent" or design.exponent is None]
    if float(noise_N.max()) < _EXACT:
        fall = float(np.ptp(observed.y_N)) * 1e-6
        values = [float(value) for value in estimates]
        ends = {name: (value - fall, value + fall) for name, value in zip(profile.PARAMETERS, values, strict=True)}
        exact = observed.degrees_of_freedom > 0
        unknown = {
            name: (0.0, float(design.bounds_P2[i, 1]) * (1.0 if name == "exponent" else design.scale))
            for i, name in enumerate(profile.PARAMETERS)
        }
        return (ends if exact else unknown), estimates[None]
    samples, criticals = estimates[None], dict.fromkeys(names, identify.asymptotic_critical(observed, level))
    if len(replicas_RN):
        theta_R3, free_R = solve(design, replicas_RN, iterations=25)
        samples = design.parameters(theta_R3)
        criticals = {
            name: profile.critical_deviance(observed, replicas_RN, free_R, profile.PARAMETERS[name], level)
            for name in names
        }
    intervals = {name: profile.interval(observed, profile.PARAMETERS[name], criticals[name]) for name in names}
    if design.exponent is not None:
        intervals["exponent"] = (design.exponent, design.exponent)
    return intervals, samples


def _leave_one_out(design: Design, y_N: Array, x_N: Array) -> tuple[float, ...]:
    kept = ~np.eye(len(y_N), dtype=bool)
    if min(len(np.unique(x_N[row])) for row in kept) < design.num_parameters:
        return ()
    without = replace(design, mask_RN=kept.astype(np.float64))
    theta_R3, _ = solve(without, np.repeat(y_N[None], len(y_N), axis=0))
    return tuple(float(value) for value in design.parameters(theta_R3)[:, ASYMPTOTE])


def _inverse(amplitude: float, exponent: float, asymptote: float, y: float) -> float:
    if y <= asymptote:
        return math.inf
    return float((amplitude / (y - asymptote)) ** (1.0 / exponent))


def _vector(name: str, values: ArrayLike | Sequence[float]) -> Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be a list of numbers: {error}") from error
    if array.ndim != 1:
        raise InputError(f"{name} must have one dimension; given shape {array.shape}")
    wrong = ~(np.isfinite(array) & (array > 0))
    if wrong.any():
        at = int(wrong.argmax())
        raise InputError(f"{name}[{at}] is {array[at]}; every value must be finite and greater than 0")
    return array


def check_settings(exponent: float | None, num_bootstrap: int, level: float, delta: float) -> None:
    """Check what the caller chose.

    Raises:
        InputError: a setting is out of range.
    """
    if exponent is not None and not 0 < exponent <= 10:
        raise InputError(f"exponent {exponent} is out of range; give a number above 0 and up to 10, or None to fit it")
    if num_bootstrap < 0:
        raise InputError(f"num_bootstrap {num_bootstrap} is negative; give 0 for asymptotic intervals or 200 and more")
    if not 0 < level < 1:
        raise InputError(f"level {level} is out of range; give a number between 0 and 1, such as 0.95")
    if not delta > 0:
        raise InputError(f"delta {delta} must be greater than 0; 1e-3 is the published choice")
