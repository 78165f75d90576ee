"""Fewer steps by distillation: a student that jumps to where its teacher's many steps lead.

    consistency    f(x_k, u_k) is pulled to f*(x_j, u_j), where x_j is the teacher's deterministic step from x_k to the
                   next level and f* a slow copy of f (arXiv 2303.01469, algorithm 2); at the data f* is x_j itself
    one step       f(noise, 1) is pulled to the teacher's whole deterministic sample (arXiv 2101.02388)

f is the estimate of the data that the student's output stands for. Sample a consistency student with the sampler
`consistency` (any few steps), a one-step student with one step of any sampler.

Legend: B batch, ... the axes of one sample, S steps of the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from forethought.core.errors import InputError
from forethought.diffusion.grid import Grid, SamplerConfig
from forethought.diffusion.prediction import to_eps, to_x0
from forethought.diffusion.process import Denoise, ProcessConfig
from forethought.diffusion.sampling import Bounds, sample


def consistency_loss(
    student: Denoise,
    slow: Denoise,
    teacher: Denoise,
    x0: Tensor,
    *,
    process: ProcessConfig,
    grid: Grid,
    noise: Tensor,
    index_B: Tensor,
) -> Tensor:
    """Return the loss of each sample [B]; `index_B` (int64, 0 to S - 1) picks each row's step of the grid.

    `slow` is a copy of the student that follows it (a moving average, or the student itself). Student and teacher
    predict the same kind. Only the student gets gradients.

    Raises:
        InputError: the shapes of noise or index_B do not fit, or an index is out of range.
    """
    if noise.shape != x0.shape or index_B.shape != x0.shape[:1]:
        raise InputError(
            f"noise {tuple(noise.shape)} and index_B {tuple(index_B.shape)} do not fit samples {tuple(x0.shape)}"
        )
    if bool((index_B < 0).any()) or bool((index_B >= grid.steps).any()):
        raise InputError(f"index_B must lie in 0 to {grid.steps - 1}, the steps of the grid")
    here, there = _at(grid, index_B, x0), _at(grid, index_B + 1, x0)
    x_k = here.alpha * x0 + here.sigma * noise
    prediction = process.prediction
    with torch.no_grad():
        guess = to_x0(prediction, teacher(x_k, here.times_B), x_k, here.alpha, here.sigma)
        x_j = there.alpha * guess + there.sigma * to_eps(guess, x_k, here.alpha, here.sigma)
        goal = to_x0(prediction, slow(x_j, there.times_B), x_j, there.alpha, there.sigma)
        # At the data the consistency function is the identity, whatever a network says there.
        goal = torch.where(there.sigma == 0, x_j, goal)
    jump = to_x0(prediction, student(x_k, here.times_B), x_k, here.alpha, here.sigma)
    return (jump - goal).square().flatten(1).mean(1)


def one_step_loss(
    student: Denoise,
    teacher: Denoise,
    noise: Tensor,
    *,
    process: ProcessConfig,
    sampler: SamplerConfig,
    bounds: Bounds | None = None,
) -> Tensor:
    """Return the squared distance [B] between the student's one step and the teacher's sample from the same noise.

    Raises:
        InputError: the teacher's sampler draws noise, so that there is no single sample to aim at.
    """
    if sampler.noisy:
        raise InputError(f"{sampler.name} adds noise between steps; distil a deterministic sampler (eta 0)")
    with torch.no_grad():
        goal = sample(teacher, noise, process=process, sampler=sampler, bounds=bounds)
    jump = sample(student, noise, process=process, sampler=SamplerConfig(steps=1), bounds=None)
    return (jump - goal).square().flatten(1).mean(1)


class _Levels:
    """Levels of a grid for each row, shaped to multiply samples."""

    def __init__(self, alpha: Tensor, sigma: Tensor, times_B: Tensor) -> None:
        self.alpha, self.sigma, self.times_B = alpha, sigma, times_B


def _at(grid: Grid, index_B: Tensor, like: Tensor) -> _Levels:
    shape = (-1,) + (1,) * (like.ndim - 1)
    table = torch.tensor((grid.alphas, grid.sigmas, grid.times), dtype=like.dtype).to(like.device)
    alpha, sigma, times_B = table[:, index_B.to(like.device)]
    return _Levels(alpha.reshape(shape), sigma.reshape(shape), times_B)
