"""How well a score tells violations from nominal frames: AUROC with intervals, paired accuracy, rates, effect size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from forethought.core.errors import InputError
from forethought.core.rng import generator
from forethought.stats import Interval, wilson

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Separation:
    """Figures of one perturbation; `auroc` compares event frames with nominal frames, pairs are of one episode each."""

    auroc: Interval
    paired_accuracy: Interval
    true_positive_rate: float
    mean_z: float
    mean_z_nominal: float
    cohen_d: float
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "auroc": self.auroc.estimate,
            "auroc_interval": [self.auroc.low, self.auroc.high],
            "paired_accuracy": self.paired_accuracy.estimate,
            "paired_accuracy_interval": [self.paired_accuracy.low, self.paired_accuracy.high],
            "tpr_at_5_fpr": self.true_positive_rate,
            "mean_z": self.mean_z,
            "mean_z_nominal": self.mean_z_nominal,
            "cohen_d": self.cohen_d,
            "paired_t_p": self.p_value,
        }


def auroc(positives: ArrayLike, negatives: ArrayLike) -> float:
    """Return the chance that a positive scores above a negative, ties counting half.

    Raises:
        InputError: one side is empty or holds NaN.
    """
    above, below = np.ravel(np.asarray(positives, np.float64)), np.ravel(np.asarray(negatives, np.float64))
    if not len(above) or not len(below) or np.isnan(above).any() or np.isnan(below).any():
        raise InputError(f"AUROC needs values on both sides, none NaN; given {len(above)} and {len(below)}")
    ranks = stats.rankdata(np.concatenate([above, below]))
    return float((ranks[: len(above)].sum() - len(above) * (len(above) + 1) / 2) / (len(above) * len(below)))


def separation(events_BW: Floats, nominal_BN: Floats, twins_BW: Floats, *, seed: int = 0) -> Separation:
    """Compare scores of event frames (B, W) with all nominal frames (B, N) and with the same steps unperturbed.

    The interval of the AUROC is the percentile bootstrap over episodes, whose frames depend on one another.

    Raises:
        InputError: as auroc.
    """
    estimate = auroc(events_BW, nominal_BN)
    draws, count = generator(seed, "world.surprise.bootstrap"), len(events_BW)
    resampled = []
    for _ in range(200):
        rows = draws.integers(0, count, count)
        resampled.append(auroc(events_BW[rows], nominal_BN[rows]))
    low, high = np.quantile(resampled, [0.025, 0.975])
    own, twin = events_BW.mean(axis=1), twins_BW.mean(axis=1)
    difference = own - twin
    wins = int((difference > 0).sum())
    spread = float(difference.std(ddof=1)) if count > 1 else 0.0
    statistic = float(difference.mean()) / (spread / math.sqrt(count)) if spread > 0 else 0.0
    threshold = float(np.quantile(nominal_BN, 0.95))
    return Separation(
        auroc=Interval(estimate, float(min(low, estimate)), float(max(high, estimate)), 0.95),
        paired_accuracy=wilson(wins, count),
        true_positive_rate=float((events_BW > threshold).mean()),
        mean_z=float(own.mean()),
        mean_z_nominal=float(nominal_BN.mean()),
        cohen_d=float(difference.mean()) / spread if spread > 0 else 0.0,
        p_value=float(2 * special.stdtr(max(count - 1, 1), -abs(statistic))),
    )
