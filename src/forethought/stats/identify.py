"""When an asymptote may be quoted: the rules, with the simulations they come from.

Simulated four-point fits (truth 0.05 / x + 3.43, x from 0.15 to 1.4, observed fall 0.3) put 90 % of the estimates
within 0.04 at noise 0.005 and within 0.19 at 0.02, skewed towards optimism; ensemble curves (3.27 + 0.29 / K, fall
0.19) with a free exponent give 3.20 to 3.31 on K = 1..3 even at noise 0.003. The cut that parts the usable from the
useless among these is an interval of half the fall that was seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from forethought.stats.lawfit import EXPONENT, HIGHEST_EXPONENT, LOWEST_EXPONENT
from forethought.stats.levenberg import Array, objective
from forethought.stats.profile import Observed
from forethought.stats.quantiles import chi_squared_quantile, f_quantile

WIDEST_INTERVAL = 0.5  # of the observed fall
SLOW_EXPONENT = 0.3
WIDEST_INTERVAL_WHEN_SLOW = 0.1


@dataclass(frozen=True)
class Findings:
    """What a fit produced, as far as the rules look at it."""

    x_N: Array
    y_N: Array
    noise_N: Array
    intervals: dict[str, tuple[float, float]]
    start_spread: float
    level: float


def why_not(observed: Observed, findings: Findings) -> str:
    """Return why the asymptote is not identified, or an empty string where it is."""
    reasons = [
        _too_few_points(observed, findings),
        _no_fall(observed, findings),
        _at_a_bound(observed, findings),
        _too_wide(observed, findings),
        _starts_disagree(findings),
    ]
    return "; ".join(reason for reason in reasons if reason)


def asymptotic_critical(observed: Observed, level: float, num_held: int = 1) -> float:
    """Return the large-sample quantile of the deviance: chi-squared, or F where sigma comes from the residuals."""
    if observed.design.noise_N is not None:
        return chi_squared_quantile(level, num_held)
    return num_held * f_quantile(level, num_held, max(observed.degrees_of_freedom, 1))


def _too_few_points(observed: Observed, findings: Findings) -> str:
    num_distinct, num_parameters = len(np.unique(findings.x_N)), observed.design.num_parameters
    if num_distinct > num_parameters:
        return ""
    return (
        f"{num_distinct} distinct x determine {num_parameters} parameters and leave none to check the curve; "
        f"give at least {num_parameters + 1}" + (" or fix the exponent" if num_parameters == 3 else "")
    )


def _no_fall(observed: Observed, findings: Findings) -> str:
    """The deviance of a constant against the curve, at the chosen level."""
    problems = observed.design.problems(observed.y_N[None])
    weights_N = problems.weights_RN[0]
    logs_N = problems.targets_RN[0]
    flat = float((weights_N * logs_N).sum() / weights_N.sum())
    for _ in range(50):  # the robust mean by reweighting
        sizes = np.maximum(np.abs(logs_N - flat), 1e-300)
        robust_N = weights_N * np.minimum(1.0, problems.thresholds_N / sizes)
        flat = float((robust_N * logs_N).sum() / robust_N.sum())
    constant = objective(problems, np.full((1, len(observed.y_N)), flat))
    num_held = observed.design.num_parameters - 1
    deviance = float(observed.deviance(constant, np.array([observed.value]))[0])
    if deviance > asymptotic_critical(observed, findings.level, num_held):
        return ""
    return "the points do not fall: a constant fits them as well (amplitude indistinguishable from 0)"


def _at_a_bound(observed: Observed, findings: Findings) -> str:
    exponent = float(observed.theta_3[EXPONENT])
    if observed.design.exponent is None and not LOWEST_EXPONENT * 1.01 < exponent < HIGHEST_EXPONENT * 0.99:
        return f"the exponent ran to its bound ({exponent:.3g})"
    asymptote = float(observed.design.parameters(observed.theta_3[None])[0, 2])
    if asymptote <= 1e-6 * float(findings.y_N.max()):
        return "the asymptote ran to its bound (0)"
    return ""


def _too_wide(observed: Observed, findings: Findings) -> str:
    low, high = findings.intervals["asymptote"]
    fall = float(np.ptp(findings.y_N))
    exponent = float(observed.theta_3[EXPONENT])
    slow = observed.design.exponent is None and exponent < SLOW_EXPONENT
    widest = WIDEST_INTERVAL_WHEN_SLOW if slow else WIDEST_INTERVAL
    if math.isfinite(high) and high - low <= widest * fall:
        return ""
    tail = f" at an exponent below {SLOW_EXPONENT}" if slow else ""
    return (
        f"the {100 * findings.level:g}% interval {low:.4g} to {high:.4g} is wider than {widest:g} of the "
        f"observed fall {fall:.4g}{tail}"
    )


def _starts_disagree(findings: Findings) -> str:
    sd = float((findings.noise_N * findings.y_N).max())
    if findings.start_spread <= sd + 1e-6 * float(findings.y_N.max()):
        return ""
    return f"equally good starts end {findings.start_spread:.3g} apart, more than one sigma ({sd:.3g})"
