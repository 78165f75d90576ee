"""The times a sampler visits, with all their coefficients as plain numbers: worked out once, before anything is drawn.

Legend: S steps; a grid has S + 1 levels, from pure noise to the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.diffusion.process import ProcessConfig
from forethought.diffusion.schedule import levels

SamplerName = Literal["ddpm", "ddim", "dpm2m", "euler", "heun", "consistency"]
_END = 1e-3


@config
class SamplerConfig:
    """Which sampler and how many steps; few by default, which x0 prediction takes well."""

    name: SamplerName = "ddim"
    """ddpm (ancestral), ddim, dpm2m (DPM-Solver++ 2M), euler, heun, or consistency (denoise, noise again)."""
    steps: int = Field(default=4, ge=1)
    """Steps, each one call of the network (heun: two, but for the last)."""
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    """Noise of ddim: 0 deterministic, 1 ancestral."""
    spacing: Literal["uniform", "quadratic", "log_snr"] = "uniform"
    """How the times lie: evenly, denser near the data, or even in the log of the signal-to-noise ratio."""
    clip: float | None = Field(default=None, gt=0)
    """Clamp every estimate of the data to ±clip."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Instead of clamping, scale a sample whose this quantile of |x0| exceeds clip (arXiv 2205.11487)."""

    def __post_init__(self) -> None:
        if self.threshold is not None and self.clip is None:
            raise ConfigError("threshold scales samples back to clip; give clip too")
        if self.eta and self.name != "ddim":
            raise ConfigError(f"eta {self.eta} belongs to ddim; {self.name} has none. Leave it out or choose ddim")

    @property
    def noisy(self) -> bool:
        """Whether the sampler draws noise between its steps."""
        return self.name in ("ddpm", "consistency") or self.eta > 0


@dataclass(frozen=True, slots=True)
class Grid:
    """Levels of S + 1 times, from the noisiest to the data; plain numbers, so that a graph capture bakes them in."""

    times: tuple[float, ...]
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.times) - 1

    def log_snr(self, index: int) -> float:
        """Return lambda = log(alpha / sigma) of one level; infinite at the ends that hold no noise or no signal."""
        alpha, sigma = self.alphas[index], self.sigmas[index]
        if sigma == 0.0 or alpha == 0.0:
            return math.inf if sigma == 0.0 else -math.inf
        return math.log(alpha / sigma)


@lru_cache(maxsize=256)
def make_grid(process: ProcessConfig, sampler: SamplerConfig, *, end: float = 0.0) -> Grid:
    """Return the grid of a sampler; `end` is the time to stop at, 0 for the data. Equal settings share one grid.

    Raises:
        ConfigError: more steps than the schedule has levels, a spacing that its time does not allow, or a bad end.
    """
    if not 0 <= end < 1:
        raise ConfigError(f"end {end} must lie in [0, 1)")
    num_levels, steps = process.schedule.num_levels, sampler.steps
    if num_levels is not None and steps > num_levels:
        raise ConfigError(
            f"{steps} sampling steps exceed the {num_levels} levels that the network was trained at; "
            f"give at most {num_levels}"
        )
    if sampler.spacing == "log_snr":
        times = _log_snr_times(process, steps, end)
    else:
        share = np.linspace(1.0, 0.0, steps + 1)
        times = end + (1 - end) * (share if sampler.spacing == "uniform" else share**2)
    if num_levels is not None:
        times = _on_levels(times, num_levels)
    alphas, sigmas = levels(process.schedule, times)
    return Grid(tuple(times.tolist()), tuple(alphas.tolist()), tuple(sigmas.tolist()))


def _on_levels(times: np.ndarray, num_levels: int) -> np.ndarray:
    """Round to levels, each used once: first room is made upwards from the last one, then downwards from the top."""
    chosen = np.rint(times * num_levels).astype(np.int64)
    for index in range(len(chosen) - 2, -1, -1):
        chosen[index] = max(chosen[index], chosen[index + 1] + 1)
    chosen[0] = num_levels
    for index in range(1, len(chosen)):
        chosen[index] = min(chosen[index], chosen[index - 1] - 1)
    return chosen / num_levels


def _log_snr_times(process: ProcessConfig, steps: int, end: float) -> np.ndarray:
    """Return times even in log(alpha / sigma), by inverting it on a fine table; the last step goes to `end`."""
    smooth = replace(process.schedule, num_levels=None)
    fine = np.linspace(max(end, _END), 1.0 - (_END if process.schedule.is_flow else 0.0), 20_001)
    alphas, sigmas = levels(smooth, fine)
    ratio = np.log(alphas / np.maximum(sigmas, 1e-12))
    inner = np.interp(np.linspace(ratio[-1], ratio[0], steps + (end > 0)), ratio[::-1], fine[::-1])
    inner[0] = 1.0
    return inner if end > 0 else np.append(inner, 0.0)
