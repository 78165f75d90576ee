"""What is normal: residual covariance and calibrated novelty of the model's errors on held-out nominal episodes.

Errors depend on how much past the model saw, so each context length (1 to history frames) is calibrated by itself. The
covariance comes from one half of the episodes and the quantiles from the other: fitted on the same residuals, the
p-values would be too large.

Legend: N residuals, D latent width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import ArtefactError, InputError, unknown_name
from forethought.stats import CUSUM, Novelty

Floats = NDArray[np.float64]
SCORES = ("mahalanobis", "mse", "log-z")
MIN_RESIDUALS = 20


@dataclass(frozen=True)
class Calibration:
    """Novelty and precision matrix by context length, the CUSUM, and the identity of what was calibrated.

    score "mahalanobis": r' Sigma^-1 r / D with Sigma shrunk (Ledoit and Wolf 2004), about 1 on nominal data; "mse" and
    "log-z": mean r^2, with a plain z of the error itself or a robust z of its logarithm.
    """

    score: str
    novelty: Mapping[int, Novelty]
    precisions: Mapping[int, Floats]
    moments: Mapping[int, tuple[float, float]]
    cusum: CUSUM
    fingerprint: Mapping[str, Any]

    def error(self, residual_D: Floats, context: int) -> float:
        """Return the error of one residual; NaN stays NaN."""
        precision = self.precisions.get(context)
        if precision is None:
            return float(np.mean(np.square(residual_D)))
        return float(residual_D @ precision @ residual_D) / len(residual_D)

    def z(self, error: float, context: int) -> float:
        """Return how far an error lies from normal, in standard deviations; NaN stays NaN."""
        if math.isnan(error):
            return math.nan
        if self.score == "mse":
            mean, spread = self.moments[context]
            return (error - mean) / spread
        return float(self.novelty[context].z(error))

    def p(self, error: float, context: int) -> float:
        """Return the conformal p-value of an error; NaN stays NaN."""
        return math.nan if math.isnan(error) else float(self.novelty[context].conformal_p(error))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values that from_dict takes back without loss; the precisions are kept apart."""
        return {
            "score": self.score,
            "novelty": {str(context): novelty.to_dict() for context, novelty in self.novelty.items()},
            "moments": {str(context): list(moments) for context, moments in self.moments.items()},
            "cusum": self.cusum.to_dict(),
            "fingerprint": dict(self.fingerprint),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], precisions: Mapping[int, Floats]) -> Calibration:
        """Build the calibration from what to_dict gave.

        Raises:
            ArtefactError: the values are not a calibration.
        """
        try:
            return cls(
                score=str(values["score"]),
                novelty={int(context): Novelty.from_dict(each) for context, each in values["novelty"].items()},
                precisions=dict(precisions),
                moments={int(context): (float(a), float(b)) for context, (a, b) in values["moments"].items()},
                cusum=CUSUM.from_dict(values["cusum"]),
                fingerprint=dict(values["fingerprint"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(f"not a surprise calibration: {error!r}; calibrate again and save it") from error


def fit_calibration(
    score: str,
    residuals: Sequence[Mapping[int, Floats]],
    fingerprint: Mapping[str, Any],
    *,
    false_alarm: float,
    horizon: int,
) -> Calibration:
    """Fit a calibration to residuals by episode: context length -> rows (N, D) in the order of time.

    Raises:
        InputError: the score is unknown, or there are fewer than 2 episodes or 20 residuals of a context length.
    """
    if score not in SCORES:
        raise unknown_name("surprise score", score, SCORES)
    half = len(residuals) // 2 if score == "mahalanobis" else 0
    if len(residuals) < 2:
        raise InputError(f"{len(residuals)} episodes cannot be calibrated on; give at least 2, better 20 or more")
    precisions: dict[int, Floats] = {}
    novelty: dict[int, Novelty] = {}
    moments: dict[int, tuple[float, float]] = {}
    for context in sorted({context for each in residuals for context in each}):
        shape = [each[context] for each in residuals[:half] if context in each]
        rest = [each[context] for each in residuals[half:] if context in each]
        rows = np.concatenate(rest) if rest else np.empty((0, 1))
        if len(rows) < MIN_RESIDUALS or (half and sum(map(len, shape)) < MIN_RESIDUALS):
            raise InputError(
                f"only {len(rows)} nominal frames were judged from {context} earlier ones; give longer or more episodes"
            )
        if half:
            precisions[context] = np.asarray(np.linalg.inv(shrunk_covariance(np.concatenate(shape))), np.float64)
        errors = _errors(rows, precisions.get(context))
        novelty[context] = Novelty.fit(errors)
        moments[context] = (float(errors.mean()), float(errors.std()) or 1.0)
    partial = Calibration(score, novelty, precisions, moments, CUSUM(math.inf), fingerprint)
    longest = max(novelty)
    scores = [
        [partial.z(partial.error(row, longest), longest) for row in each[longest]]
        for each in residuals[half:]
        if longest in each
    ]
    nominal = np.concatenate([np.asarray(each) for each in scores])
    block = max(1, min(min(map(len, scores)), 20))
    cusum = CUSUM.calibrate(nominal, false_alarm=false_alarm, horizon=horizon, block=block, num_paths=1000)
    return Calibration(score, novelty, precisions, moments, cusum, fingerprint)


def shrunk_covariance(rows_ND: Floats) -> Floats:
    """Return the covariance about zero, shrunk towards a multiple of the identity (Ledoit and Wolf 2004, eq. 14)."""
    count, size = rows_ND.shape
    sample = rows_ND.T @ rows_ND / count
    scale = float(np.trace(sample)) / size
    distance = float(np.square(sample - scale * np.eye(size)).sum())
    # sum over rows of |x x' - S|^2 = sum of |x|^4 - n |S|^2
    noise = float((np.square(np.square(rows_ND).sum(axis=1)).sum() - count * np.square(sample).sum()) / count**2)
    share = min(1.0, max(noise, 0.0) / distance) if distance > 0 else 1.0
    shrunk = (1.0 - share) * sample + share * scale * np.eye(size)
    return shrunk + 1e-6 * max(scale, 1e-12) * np.eye(size)


def _errors(rows_ND: Floats, precision: Floats | None) -> Floats:
    if precision is None:
        return np.square(rows_ND).mean(axis=1)
    return np.einsum("nd,de,ne->n", rows_ND, precision, rows_ND, optimize=True) / rows_ND.shape[1]
