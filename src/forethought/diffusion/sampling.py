"""Samplers as pure functions: noise in, samples out, the network a function argument, every random number an argument.

A step goes from level k to level j < k with the estimate x0 of the data and eps = (x - alpha_k x0) / sigma_k:

    ddim          x_j = alpha_j x0 + sqrt(sigma_j^2 - s^2) eps + s z,
                  s = eta (sigma_j / sigma_k) sqrt(1 - alpha_k^2 / alpha_j^2)                     (arXiv 2010.02502)
    ddpm          ddim with eta = 1: the ancestral step of arXiv 2006.11239
    dpm2m         x_j = (sigma_j / sigma_k) x - alpha_j (exp(-h) - 1) D, h = lambda_j - lambda_k,
                  D = x0 + (x0 - x0 before) h / (2 h before), lambda = log(alpha / sigma)         (arXiv 2211.01095)
    euler, heun   dx / dp, with p = u and eps - x0 for flow, p = atan2(sigma, alpha) and alpha eps - sigma x0 else
    consistency   x_j = alpha_j x0 + sigma_j z                                                    (arXiv 2303.01469)

Shapes are fixed, nothing is copied from the host and no value is read back, so a CUDA graph or torch.compile can hold a
whole call.

Legend: B batch, ... the axes of one sample, S steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.core.errors import InputError
from forethought.diffusion.grid import Grid, SamplerConfig, make_grid
from forethought.diffusion.prediction import to_eps, to_x0
from forethought.diffusion.process import Denoise, ProcessConfig

Bounds = tuple[Tensor, Tensor]
"""(low, high), each broadcast to the samples."""


@dataclass(frozen=True, slots=True)
class Inpaint:
    """Entries to hold: `values` where `mask` (bool, broadcast to the samples) is True.

    With clean=True the network sees them without noise, as one trained with `known` does; else they are noised to the
    level of the step.
    """

    values: Tensor
    mask: Tensor
    clean: bool = True


def draw_noise(
    shape: tuple[int, ...], sampler: SamplerConfig, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor | None]:
    """Return all noise of one call, (noise [B, ...], between [S, B, ...] or None), on the generator's device."""
    device = generator.device
    noise = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    if not sampler.noisy:
        return noise, None
    return noise, torch.randn((sampler.steps, *shape), generator=generator, device=device, dtype=dtype)


def sample(
    denoise: Denoise,
    noise: Tensor,
    *,
    process: ProcessConfig,
    sampler: SamplerConfig,
    between: Tensor | None = None,
    inpaint: Inpaint | None = None,
    bounds: Bounds | None = None,
    grid: Grid | None = None,
) -> Tensor:
    """Return samples [B, ...] for standard normal noise [B, ...].

    `between` [S, B, ...] is the noise that a noisy sampler adds (see draw_noise). `bounds` clamps every estimate of the
    data to (low, high), beside the sampler's own clip. `grid` replaces the sampler's, for example to stop early.

    Raises:
        ConfigError: the sampler has more steps than the schedule has levels.
        InputError: a noisy sampler is called without `between`, or its shape does not fit.
    """
    grid = make_grid(process, sampler) if grid is None else grid
    if sampler.noisy and (between is None or between.shape != (grid.steps, *noise.shape)):
        given = None if between is None else tuple(between.shape)
        raise InputError(
            f"{sampler.name} adds noise at every step; give `between` of {(grid.steps, *noise.shape)}, not {given}"
        )
    state = _State(denoise, process, sampler, grid, inpaint, noise, bounds)
    x, before = noise, None
    for index in range(grid.steps):
        x = state.held(x, index)
        x0 = state.estimate(x, index)
        x = _advance(state, x, x0, before, index, None if between is None else between[index])
        before = x0
    return x if inpaint is None else torch.where(inpaint.mask, inpaint.values, x)


@dataclass(frozen=True, slots=True)
class _State:
    """What stays the same over the steps of one call."""

    denoise: Denoise
    process: ProcessConfig
    sampler: SamplerConfig
    grid: Grid
    inpaint: Inpaint | None
    noise: Tensor
    bounds: Bounds | None

    def held(self, x: Tensor, index: int) -> Tensor:
        held = self.inpaint
        if held is None:
            return x
        if held.clean:
            return torch.where(held.mask, held.values, x)
        return torch.where(held.mask, self.grid.alphas[index] * held.values + self.grid.sigmas[index] * self.noise, x)

    def estimate(self, x: Tensor, index: int) -> Tensor:
        # Filled where x lives: a copy from the host could not be captured.
        output = self.denoise(x, x.new_full((1,), self.grid.times[index]))
        x0 = to_x0(self.process.prediction, output, x, self.grid.alphas[index], self.grid.sigmas[index])
        if self.bounds is not None:
            x0 = torch.clamp(x0, *self.bounds)
        if self.sampler.clip is not None:
            x0 = _limited(x0, self.sampler.clip, self.sampler.threshold)
        return x0


def _advance(state: _State, x: Tensor, x0: Tensor, before: Tensor | None, index: int, z: Tensor | None) -> Tensor:
    name, grid = state.sampler.name, state.grid
    if name == "dpm2m":
        return _dpm2m(grid, x, x0, before, index)
    if name == "euler" or name == "heun":
        return _ode(state, x, x0, index, corrected=name == "heun")
    alpha, sigma = grid.alphas[index + 1], grid.sigmas[index + 1]
    if name == "consistency":
        return alpha * x0 if z is None else alpha * x0 + sigma * z
    eta = 1.0 if name == "ddpm" else state.sampler.eta
    return _ddim(grid, x, x0, index, eta, z)


def _ddim(grid: Grid, x: Tensor, x0: Tensor, index: int, eta: float, z: Tensor | None) -> Tensor:
    alpha_k, sigma_k = grid.alphas[index], grid.sigmas[index]
    alpha_j, sigma_j = grid.alphas[index + 1], grid.sigmas[index + 1]
    spread = eta * ancestral_sigma(alpha_k, sigma_k, alpha_j, sigma_j)
    kept = math.sqrt(max(sigma_j**2 - spread**2, 0.0))
    # x_j = alpha_j x0 + kept * eps as one combination of x and x0, which saves a pass over memory.
    share = kept / sigma_k
    moved = share * x + (alpha_j - share * alpha_k) * x0
    return moved if z is None or spread == 0.0 else moved + spread * z


def ancestral_sigma(alpha_k: float, sigma_k: float, alpha_j: float, sigma_j: float) -> float:
    """Return the standard deviation of x_j given x_k and x0 in the forward process (eta = 1)."""
    return sigma_j / sigma_k * math.sqrt(max(sigma_k**2 - (alpha_k / alpha_j * sigma_j) ** 2, 0.0))


def _dpm2m(grid: Grid, x: Tensor, x0: Tensor, before: Tensor | None, index: int) -> Tensor:
    alpha_j, sigma_j = grid.alphas[index + 1], grid.sigmas[index + 1]
    if sigma_j == 0.0:
        return alpha_j * x0
    ratio = sigma_j / grid.sigmas[index]
    # alpha_j (1 - exp(-h)) written without h, which is infinite where a flow starts without signal.
    gain = alpha_j - ratio * grid.alphas[index]
    if before is None or not math.isfinite(grid.log_snr(index - 1)):
        return ratio * x + gain * x0
    step = grid.log_snr(index + 1) - grid.log_snr(index)
    last = grid.log_snr(index) - grid.log_snr(index - 1)
    # Below the schedule's least signal two levels can be equal; there is nothing to extrapolate from then.
    slope = 0.0 if last <= 0.0 else step / (2 * last)
    return ratio * x + gain * ((1 + slope) * x0 - slope * before)


def _ode(state: _State, x: Tensor, x0: Tensor, index: int, *, corrected: bool) -> Tensor:
    flow, grid = state.process.schedule.is_flow, state.grid
    step = _place(grid, index + 1, flow) - _place(grid, index, flow)
    slope = _slope(grid, x, x0, index, flow)
    moved = x + step * slope
    # The data end has no noise to take a slope from; there the first-order step stands.
    if not corrected or grid.sigmas[index + 1] == 0.0:
        return moved
    moved = state.held(moved, index + 1)
    ahead = _slope(grid, moved, state.estimate(moved, index + 1), index + 1, flow)
    return x + step * 0.5 * (slope + ahead)


def _place(grid: Grid, index: int, flow: bool) -> float:
    return grid.times[index] if flow else math.atan2(grid.sigmas[index], grid.alphas[index])


def _slope(grid: Grid, x: Tensor, x0: Tensor, index: int, flow: bool) -> Tensor:
    alpha, sigma = grid.alphas[index], grid.sigmas[index]
    eps = to_eps(x0, x, alpha, sigma)
    return eps - x0 if flow else alpha * eps - sigma * x0


def _limited(x0: Tensor, bound: float, quantile: float | None) -> Tensor:
    if quantile is None:
        return x0.clamp(-bound, bound)
    reach = torch.quantile(x0.abs().flatten(1).float(), quantile, dim=1).to(x0.dtype)
    reach = reach.clamp(min=bound).reshape(-1, *(1,) * (x0.ndim - 1))
    return torch.minimum(torch.maximum(x0, -reach), reach) * (bound / reach)
