"""Noise schedules: how much signal alpha and noise sigma a sample holds at time u, from 0 (data) to 1 (noise).

x_u = alpha(u) x0 + sigma(u) eps. All but `flow` keep alpha^2 + sigma^2 = 1 (variance preserving):

    cosine    alpha^2 = cos^2(((u + s) / (1 + s)) pi / 2) / cos^2((s / (1 + s)) pi / 2), s = 0.008 (arXiv 2102.09672)
    linear    alpha^2 = exp(-(b0 u + (b1 - b0) u^2 / 2)), b0 = 0.1, b1 = 20 (arXiv 2011.13456, VP)
    sigmoid   alpha^2 falls as a sigmoid from -3 to 3 (arXiv 2212.11972)
    flow      alpha = 1 - u, sigma = u (rectified flow, arXiv 2209.03003)

With `num_levels` K the first three become the K discrete levels of DDPM, u = k / K, whose
beta_k = min(1 - alpha_k^2 / alpha_(k-1)^2, 0.999).

Legend: S levels of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from forethought.core.config import config
from forethought.core.errors import ConfigError, unknown_name

Floats = NDArray[np.float64]
# The least alpha^2: keeps x0 = (x - sigma eps) / alpha bounded where only noise is left.
MIN_SIGNAL = 1e-4
_MAX_BETA = 0.999


@config
class ScheduleConfig:
    """Which schedule, and how many levels where time is discrete."""

    name: str = "cosine"
    """cosine, linear, sigmoid or flow."""
    num_levels: int | None = Field(default=None, ge=1)
    """Levels K of discrete time; None: continuous time."""

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise unknown_name("noise schedule", self.name, SCHEDULES)

    @property
    def is_flow(self) -> bool:
        """Whether signal and noise sum to 1 (rectified flow) and not their squares."""
        return self.name == "flow"


def levels(schedule: ScheduleConfig, times: Floats) -> tuple[Floats, Floats]:
    """Return (alpha, sigma) in double precision at times in [0, 1]; discrete times are rounded to the nearest level.

    Raises:
        ConfigError: a time is outside [0, 1].
    """
    times = np.asarray(times, dtype=np.float64)
    if not ((times >= 0) & (times <= 1)).all():
        raise ConfigError(f"times must lie in [0, 1]; got {times.min()} to {times.max()}")
    if schedule.is_flow:
        return 1.0 - times, times
    if schedule.num_levels is None:
        # At the very start the noise is 0 exactly: the last step of every sampler lands there.
        signal = np.clip(SCHEDULES[schedule.name](times), MIN_SIGNAL, 1.0)
    else:
        table = discrete_signal(schedule)
        signal = table[np.rint(times * schedule.num_levels).astype(np.int64)]
    return np.sqrt(signal), np.sqrt(1.0 - signal)


def discrete_signal(schedule: ScheduleConfig) -> Floats:
    """Return alpha^2 at the levels 0 to K, [K + 1], with the cap on beta.

    Raises:
        ConfigError: the schedule has no levels.
    """
    if schedule.num_levels is None:
        raise ConfigError("discrete levels need num_levels; set it, or use continuous time")
    exact = SCHEDULES[schedule.name](np.arange(schedule.num_levels + 1) / schedule.num_levels)
    betas = np.minimum(1.0 - exact[1:] / np.maximum(exact[:-1], np.finfo(np.float64).tiny), _MAX_BETA)
    return np.asarray(np.concatenate((np.ones(1), np.cumprod(1.0 - betas))), dtype=np.float64)


def tensor_levels(schedule: ScheduleConfig, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return (alpha, sigma) for times [B], shaped to multiply `like` [B, ...], in its type and on its device.

    For training: it looks the values up on the host; samplers use a grid of plain numbers instead.
    """
    alpha, sigma = levels(schedule, times.detach().cpu().double().numpy())
    shape = (-1,) + (1,) * (like.ndim - 1)
    return tuple(  # pyright: ignore[reportReturnType]
        torch.from_numpy(np.atleast_1d(value)).to(like.device, like.dtype).reshape(shape) for value in (alpha, sigma)
    )


def _cosine(times: Floats) -> Floats:
    shift = 0.008
    return (np.cos((times + shift) / (1 + shift) * math.pi / 2) / math.cos(shift / (1 + shift) * math.pi / 2)) ** 2


def _linear(times: Floats) -> Floats:
    low, high = 0.1, 20.0
    return np.exp(-(low * times + (high - low) * times**2 / 2))


def _sigmoid(times: Floats) -> Floats:
    def logistic(value: Any) -> Any:
        return 1.0 / (1.0 + np.exp(-value))

    start, end = -3.0, 3.0
    return (logistic(end) - logistic(times * (end - start) + start)) / (logistic(end) - logistic(start))


def _flow(times: Floats) -> Floats:
    return (1.0 - times) ** 2


SCHEDULES: dict[str, Callable[[Floats], Floats]] = {
    "cosine": _cosine,
    "flow": _flow,
    "linear": _linear,
    "sigmoid": _sigmoid,
}
