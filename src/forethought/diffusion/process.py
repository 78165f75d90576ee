"""A diffusion process: its schedule and what its network predicts; noising, times to train at, and the loss.

    x_u = alpha(u) x0 + sigma(u) eps
    L   = mean of mask * weight(u) * (network(x_u, u) - target)^2          (arXiv 2006.11239, eq. 14, for eps)

Legend: B batch, ... the axes of one sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from forethought.core.config import config
from forethought.core.errors import ConfigError, InputError
from forethought.diffusion.prediction import Prediction, target, to_x0
from forethought.diffusion.schedule import ScheduleConfig, tensor_levels

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy samples [B, ...], times [1] or [B]) -> the network's raw output [B, ...]."""


@config
class ProcessConfig:
    """A schedule, a prediction and the weight of the loss over noise levels."""

    schedule: ScheduleConfig = ScheduleConfig()
    prediction: Prediction = "x0"
    """x0 (safe in few steps), eps, v, or velocity (rectified flow)."""
    weighting: Literal["uniform", "min_snr"] = "uniform"
    """uniform: as predicted; min_snr: min(snr, 5) on the error of x0 (arXiv 2303.09556)."""
    snr_cap: float = Field(default=5.0, gt=0)
    """The cap of min_snr."""

    def __post_init__(self) -> None:
        if self.prediction == "eps" and self.schedule.is_flow:
            raise ConfigError(
                "a flow schedule has no signal at time 1, from which eps cannot give the data; predict velocity or x0"
            )


def train_times(process: ProcessConfig, num: int, generator: torch.Generator) -> Tensor:
    """Draw times [num] in (0, 1] on the CPU, one in each of `num` equal strata, in random order.

    Strata cover all noise levels in every batch, which lowers the variance of the loss.
    """
    offsets = torch.rand(num, generator=generator)
    order = torch.randperm(num, generator=generator)
    times = 1.0 - (order + offsets) / num
    count = process.schedule.num_levels
    times = times.clamp(1e-4 if count is None else 0.0, 1.0)
    return times if count is None else (torch.ceil(times * count).clamp(min=1) / count)


def add_noise(process: ProcessConfig, x0: Tensor, noise: Tensor, times_B: Tensor) -> Tensor:
    """Return x_u for x0 [B, ...] at times [B]."""
    alpha, sigma = tensor_levels(process.schedule, times_B, x0)
    return alpha * x0 + sigma * noise


def diffusion_loss(
    denoise: Denoise,
    x0: Tensor,
    *,
    process: ProcessConfig,
    noise: Tensor,
    times_B: Tensor,
    mask: Tensor | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Return the loss of each sample [B], a mean over its unmasked entries.

    `mask` (broadcast to x0) weighs entries: 0 leaves one out. `known` (bool, broadcast to x0) marks entries that the
    network sees clean and that do not count, for inpainting.

    Raises:
        InputError: the shapes of noise, times or the output do not fit.
    """
    if noise.shape != x0.shape or times_B.shape != x0.shape[:1]:
        raise InputError(
            f"noise {tuple(noise.shape)} and times {tuple(times_B.shape)} do not fit samples {tuple(x0.shape)}; "
            "give noise like the samples and one time each"
        )
    alpha, sigma = tensor_levels(process.schedule, times_B, x0)
    x = alpha * x0 + sigma * noise
    if known is not None:
        x = torch.where(known, x0, x)
    output = denoise(x, times_B.to(x0.device, x0.dtype))
    if output.shape != x0.shape:
        raise InputError(
            f"the network returned {tuple(output.shape)} for samples {tuple(x0.shape)}; they must be alike"
        )
    if process.weighting == "min_snr":
        snr = (alpha / sigma.clamp(min=1e-4)) ** 2
        error = snr.clamp(max=process.snr_cap) * (to_x0(process.prediction, output, x, alpha, sigma) - x0) ** 2
    else:
        error = (output - target(process.prediction, x0, noise, alpha, sigma)) ** 2
    return _masked_mean(error, mask, known)


def _masked_mean(error: Tensor, mask: Tensor | None, known: Tensor | None) -> Tensor:
    if mask is None and known is None:
        return error.flatten(1).mean(1)
    weight = torch.ones_like(error) if mask is None else mask.to(error.dtype).expand_as(error)
    if known is not None:
        weight = weight * (~known).to(error.dtype)
    weight = weight.flatten(1)
    return (error.flatten(1) * weight).sum(1) / weight.sum(1).clamp(min=1.0)
