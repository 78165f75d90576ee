"""Linear models seen as Gaussian laws: ridge in kernel form, evidence, effective dimension, and a bound for them.

Legend: N examples, P features, K outputs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from forethought.certify.bounds.pacbayes import maurer_seeger

Array = NDArray[np.floating]

SCALES = tuple(2.0**power for power in range(-8, 9))
"""The grid of posterior widths, fixed beforehand and paid for with its logarithm."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def legendre(x: Array, degree: int) -> Array:
    """Return the Legendre polynomials up to a degree, scaled to unit mean square on [-1, 1], as [N, degree + 1]."""
    return np.polynomial.legendre.legvander(x, degree) * np.sqrt(2.0 * np.arange(degree + 1) + 1.0)


def ridge(features: Array, targets: Array, penalties: Array | float) -> Array:
    """Return the weights [P] or [P, K] that minimise |targets - features w|^2 + sum_j penalties_j w_j^2.

    Solved in the N x N kernel form, in whitened coordinates, so penalties may span hundreds of decades.
    """
    scaled = features / np.sqrt(penalties)
    kernel = scaled @ scaled.T
    dual = np.linalg.solve(kernel + np.eye(len(kernel)), targets)
    shrunk = scaled.T @ dual
    spread = np.sqrt(np.broadcast_to(penalties, features.shape[1]))
    return shrunk / (spread if shrunk.ndim == 1 else spread[:, None])


def minimum_norm(features: Array, targets: Array) -> Array:
    """Return the least-squares weights of least norm."""
    return np.linalg.pinv(features) @ targets


def log_evidence(features: Array, targets: Array, penalties: Array | float, noise: float) -> float:
    """Return the log marginal likelihood of targets under w_j ~ N(0, noise^2 / penalties_j) and Gaussian noise."""
    scaled = features / np.sqrt(penalties)
    covariance = noise**2 * (scaled @ scaled.T + np.eye(len(targets)))
    sign, log_determinant = np.linalg.slogdet(covariance)
    quadratic = float(targets @ np.linalg.solve(covariance, targets))
    if sign <= 0:
        return -math.inf
    return -0.5 * (quadratic + float(log_determinant) + len(targets) * math.log(2 * math.pi))


def effective_dimension(eigenvalues: Array, alpha: float) -> float:
    """Return sum_i lambda_i / (lambda_i + alpha) (MacKay 1992), with alpha the precision of the prior.

    The eigenvalues are those of the curvature of the summed negative log-likelihood; negative ones count as 0.
    """
    clipped = np.clip(eigenvalues, 0.0, None)
    return float((clipped / (clipped + alpha)).sum())


def matched_precision(weights: Array) -> float:
    """Return the precision of the zero-mean Gaussian prior under which these weights are most likely."""
    return weights.size / max(float((weights**2).sum()), 1e-300)


def gibbs_errors(scores: Array, spread: Array, labels: NDArray[np.int64]) -> float:
    """Return the mean probability of a wrong class when scores [N, K] get independent noise of deviation spread [N]."""
    own = scores[np.arange(len(labels)), labels]
    gaps = (own[:, None] - scores) / spread[:, None]
    log_right = np.zeros((len(labels), len(_NODES)))
    for k in range(scores.shape[1]):
        others = (labels != k)[:, None]
        log_right += np.where(others, log_ndtr(gaps[:, k, None] + _NODES[None, :]), 0.0)
    return float(1.0 - (np.exp(log_right) @ _WEIGHTS).mean())


def gibbs_clipped_square(means: Array, spread: Array, targets: Array, width: float) -> float:
    """Return the mean of min(1, (error / width)^2) when predictions get Gaussian noise of deviation spread [N]."""
    errors = (means - targets)[:, None] + spread[:, None] * _NODES[None, :]
    return float((np.minimum(1.0, (errors / width) ** 2) @ _WEIGHTS).mean())


def gaussian_bound(weights: Array, gibbs_risk: dict[float, float], n: int, delta: float) -> tuple[float, float, float]:
    """Return (bound, width, KL in nats) of Q = N(w, s^2 I) against P = N(0, s^2 I), at the best width of the grid.

    PAC-Bayes-kl with delta shared evenly by the widths, so the minimum is sound. `gibbs_risk` maps each width to the
    exact empirical risk of Q in [0, 1].
    """
    best = (math.inf, 0.0, 0.0)
    for width, risk in gibbs_risk.items():
        divergence = float((weights**2).sum()) / (2.0 * width**2)
        bound = maurer_seeger(min(1.0, max(0.0, risk)), n, divergence / math.log(2.0), delta / len(gibbs_risk))
        best = min(best, (bound, width, divergence))
    return best
