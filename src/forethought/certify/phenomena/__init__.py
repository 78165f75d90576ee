"""Phenomena of overparametrised models, each a function (budget, seed) -> Outcome that measures and forces nothing.

outcome.py is what they return; linear.py and networks.py what they share; curvature.py is useful by itself.
"""

from __future__ import annotations

from collections.abc import Callable

from forethought.certify.phenomena.benign import benign_overfitting
from forethought.certify.phenomena.connectivity import mode_connectivity
from forethought.certify.phenomena.features import feature_descent
from forethought.certify.phenomena.flatness import flat_minima
from forethought.certify.phenomena.ladder import model_ladder
from forethought.certify.phenomena.outcome import Budget, Outcome
from forethought.certify.phenomena.polynomial import degree_descent, order_polynomial
from forethought.certify.phenomena.symmetry import soft_symmetry
from forethought.certify.phenomena.volume import minima_volume

PHENOMENA: dict[str, Callable[[Budget, int], Outcome]] = {
    "order-polynomial": order_polynomial,
    "degree-descent": degree_descent,
    "feature-descent": feature_descent,
    "benign-overfitting": benign_overfitting,
    "minima-volume": minima_volume,
    "flat-minima": flat_minima,
    "mode-connectivity": mode_connectivity,
    "soft-symmetry": soft_symmetry,
    "model-ladder": model_ladder,
}

__all__ = ["PHENOMENA", "Budget", "Outcome"]
