"""A mixture of Gaussians under noise: everything about it is known in closed form.

Legend: B batch, M modes, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.diffusion import Denoise, Grid, ProcessConfig, levels, target, to_eps


@dataclass(frozen=True)
class Mixture:
    """Round Gaussians: weights [M], means [M, D], standard deviations [M]."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw samples [count, D]."""
        mode = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn((count, self.means.shape[1]), generator=generator, dtype=torch.float64)
        return self.means[mode] + self.stds[mode, None] * noise

    def shares(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Return the posterior probability of each mode [B, M] given x at a level (a number, or [B, 1])."""
        variance = alpha**2 * self.stds**2 + sigma**2
        # |x - alpha mean|^2 without a [B, M, D] array.
        square = x.square().sum(1, keepdim=True) - 2 * alpha * (x @ self.means.T)
        square = square + alpha**2 * self.means.square().sum(1)
        return torch.softmax(self.weights.log() - 0.5 * square / variance - 0.5 * x.shape[1] * variance.log(), dim=-1)

    def clean(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Return E[x0 | x] [B, D] at a level (a number, or [B, 1])."""
        gain = alpha * self.stds**2 / (alpha**2 * self.stds**2 + sigma**2)
        shares = self.shares(x, alpha, sigma)
        # Sum over the modes of share * (mean + gain * (x - alpha * mean)).
        return (shares * (1 - gain * alpha)) @ self.means + (shares * gain).sum(1, keepdim=True) * x


def exact(mixture: Mixture, process: ProcessConfig) -> Denoise:
    """Return the network that has learned a mixture perfectly, predicting what the process says."""

    def denoise(x: Tensor, times: Tensor) -> Tensor:
        alpha, sigma = (torch.from_numpy(level)[:, None] for level in levels(process.schedule, times.numpy()))
        clean = mixture.clean(x, alpha, sigma)
        return target(process.prediction, clean, to_eps(clean, x, alpha, sigma), alpha, sigma)

    return denoise


def gaussian_flow(mixture: Mixture, noise: Tensor, grid: Grid) -> Tensor:
    """Return where the exact probability-flow ODE of a single Gaussian takes noise over a grid."""
    mean, std = mixture.means[0], mixture.stds[0]

    def spread(index: int) -> Tensor:
        return torch.sqrt(grid.alphas[index] ** 2 * std**2 + grid.sigmas[index] ** 2)

    standard = (noise - grid.alphas[0] * mean) / spread(0)
    return grid.alphas[-1] * mean + spread(-1) * standard
