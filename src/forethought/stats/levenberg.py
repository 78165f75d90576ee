"""Many small robust least-squares problems at once: Levenberg-Marquardt with Huber weights over a batch.

Shapes: R problems (bootstrap replicates or starts), N points, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Model = Callable[[Array], tuple[Array, Array]]

_LARGEST_STEP = 2.0  # parameters are logarithms and exponents; a longer jump leaves the region the model is linear in
_SMALLEST_CURVATURE = 1e-30


@dataclass(frozen=True)
class Problems:
    """A batch of problems: targets_RN, weights_RN and Huber thresholds_N, all on the scale of the residual."""

    targets_RN: Array
    weights_RN: Array
    thresholds_N: Array


def huber(residuals: Array, thresholds: Array) -> Array:
    """Return Huber's loss: half the square within the threshold, linear beyond it (Huber 1964)."""
    sizes = np.abs(residuals)
    return np.where(sizes <= thresholds, 0.5 * sizes * sizes, thresholds * (sizes - 0.5 * thresholds))


def objective(problems: Problems, predictions: Array) -> Array:
    """Return the weighted sum (not the mean) of Huber losses over the last axis."""
    losses = huber(predictions - problems.targets_RN, problems.thresholds_N)
    return (problems.weights_RN * losses).sum(axis=-1)


def minimise(
    model: Model,
    problems: Problems,
    starts_RP: Array,
    bounds_P2: Array,
    *,
    frozen_P: NDArray[np.bool_] | None = None,
    iterations: int = 60,
    tolerance: float = 1e-13,
) -> tuple[Array, Array]:
    """Return the parameters (R, P) that minimise each problem from its start, and the objectives (R,).

    `model` maps parameters (R, P) to predictions (R, N) and their Jacobian (R, N, P). Frozen parameters keep their
    start. A problem stops once a step changes its objective by less than `tolerance` of it.
    """
    frozen = np.zeros(starts_RP.shape[1], dtype=bool) if frozen_P is None else frozen_P
    theta = starts_RP.copy()
    theta[:, ~frozen] = np.clip(starts_RP, bounds_P2[:, 0], bounds_P2[:, 1])[:, ~frozen]
    predictions, jacobian = model(theta)
    value = objective(problems, predictions)
    damping = np.full(len(theta), 1e-3)
    running = np.arange(len(theta))
    for _ in range(iterations):
        part = Problems(problems.targets_RN[running], problems.weights_RN[running], problems.thresholds_N)
        step = _step(part, predictions, jacobian, theta[running], bounds_P2, frozen, damping[running])
        trial = np.where(frozen, theta[running], np.clip(theta[running] + step, bounds_P2[:, 0], bounds_P2[:, 1]))
        trial_predictions, trial_jacobian = model(trial)
        trial_value = objective(part, trial_predictions)
        better = trial_value < value[running]
        done = np.abs(trial_value - value[running]) <= tolerance * value[running]
        theta[running[better]] = trial[better]
        value[running[better]] = trial_value[better]
        damping[running] = np.clip(np.where(better, damping[running] * 0.1, damping[running] * 8.0), 1e-14, 1e14)
        keep = ~(done | (damping[running] > 1e12))
        predictions = np.where(better[:, None], trial_predictions, predictions)[keep]
        jacobian = np.where(better[:, None, None], trial_jacobian, jacobian)[keep]
        running = running[keep]
        if not running.size:
            break
    return theta, value


def _step(
    problems: Problems,
    predictions: Array,
    jacobian: Array,
    theta: Array,
    bounds: Array,
    frozen: NDArray[np.bool_],
    damping: Array,
) -> Array:
    residuals = predictions - problems.targets_RN
    sizes = np.maximum(np.abs(residuals), 1e-300)
    weights = problems.weights_RN * np.minimum(1.0, problems.thresholds_N / sizes)
    weighted = jacobian * weights[:, :, None]
    gradient = np.einsum("rnp,rn->rp", weighted, residuals)
    curvature = np.einsum("rnp,rnq->rpq", weighted, jacobian)
    # A parameter at its bound whose descent leads outside must not take part, or the others are solved for wrongly.
    stuck = (theta <= bounds[:, 0]) & (gradient > 0) | (theta >= bounds[:, 1]) & (gradient < 0) | frozen
    gradient = np.where(stuck, 0.0, gradient)
    curvature = np.where(stuck[:, :, None] | stuck[:, None, :], 0.0, curvature)
    diagonal = np.einsum("rpp->rp", curvature)
    extra = damping[:, None] * diagonal + _SMALLEST_CURVATURE + np.where(stuck, 1.0, 0.0)
    damped = curvature + extra[:, :, None] * np.eye(theta.shape[1])
    step = np.asarray(np.linalg.solve(damped, gradient[:, :, None])[:, :, 0], dtype=np.float64)
    return np.clip(-step, -_LARGEST_STEP, _LARGEST_STEP)
