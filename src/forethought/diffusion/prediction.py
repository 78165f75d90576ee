"""What a network predicts at noise level (alpha, sigma), and how one prediction becomes another.

    x0          the data
    eps         the noise
    v           alpha eps - sigma x0 (arXiv 2202.00512)
    velocity    eps - x0, the direction of rectified flow (arXiv 2209.03003)

x = alpha x0 + sigma eps ties them together, so any one of them and x give the rest. Everything is elementwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from forethought.core.errors import unknown_name

Prediction = Literal["x0", "eps", "v", "velocity"]
Level = float | Tensor
# Below this noise, eps = (x - alpha x0) / sigma is only rounding; the level itself is never this small but at the end.
_MIN_SIGMA = 1e-6


def to_x0(prediction: Prediction, output: Tensor, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
    """Return the data that a network's output stands for.

    Raises:
        ConfigError: the prediction is unknown.
    """
    return _known(prediction)[0](output, x, alpha, sigma)


def to_eps(x0: Tensor, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
    """Return the noise that is left in x when its data is x0."""
    floor = torch.clamp(sigma, min=_MIN_SIGMA) if isinstance(sigma, Tensor) else max(sigma, _MIN_SIGMA)
    return (x - alpha * x0) / floor


def target(prediction: Prediction, x0: Tensor, eps: Tensor, alpha: Level, sigma: Level) -> Tensor:
    """Return what a network of this prediction should output.

    Raises:
        ConfigError: the prediction is unknown.
    """
    return _known(prediction)[1](x0, eps, alpha, sigma)


def _known(prediction: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction", prediction, PREDICTIONS)
    return PREDICTIONS[prediction]


PREDICTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "x0": (lambda out, x, alpha, sigma: out, lambda x0, eps, alpha, sigma: x0),
    "eps": (lambda out, x, alpha, sigma: (x - sigma * out) / alpha, lambda x0, eps, alpha, sigma: eps),
    "v": (
        lambda out, x, alpha, sigma: (alpha * x - sigma * out) / (alpha * alpha + sigma * sigma),
        lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    ),
    "velocity": (
        lambda out, x, alpha, sigma: (x - sigma * out) / (alpha + sigma),
        lambda x0, eps, alpha, sigma: eps - x0,
    ),
}
