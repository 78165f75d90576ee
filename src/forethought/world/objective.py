"""The two terms of a world model's loss, and the alternatives that ablations need.

    L = mean (zhat_{t+1} - z_{t+1})^2  +  lambda * SIGReg(z),   lambda = strength / batch

Legend: B batch, T frames, D latent width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from forethought.core.rng import torch_generator
from forethought.world.config import RegulariserConfig, WorldFitConfig
from forethought.world.data import WorldBatch
from forethought.world.distributed import differentiable_sum, group_size
from forethought.world.sigreg import sigreg


def prediction_loss(z_BTD: Tensor, predicted: Tensor) -> Tensor:
    """Return the mean squared error of predictions (B, T - 1, D) of the latents 2 to T; both sides learn from it."""
    return functional.mse_loss(predicted.float(), z_BTD[:, 1:].float())


def vicreg(z_TND: Tensor, variance: float, covariance: float) -> Tensor:
    """Return VICReg's variance and covariance terms (arXiv 2105.04906), a time step at a time, over all processes."""
    wide = z_TND.float()
    count = wide.shape[1] * group_size()
    centred = wide - differentiable_sum(wide.sum(1, keepdim=True)) / count
    gram_TDD = differentiable_sum(centred.transpose(1, 2) @ centred) / max(count - 1, 1)
    variances_TD = gram_TDD.diagonal(dim1=1, dim2=2)
    hinge = functional.relu(1.0 - (variances_TD + 1e-4).sqrt()).mean()
    off_diagonal = gram_TDD.square().sum(dim=(1, 2)) - variances_TD.square().sum(dim=1)
    return variance * hinge + covariance * (off_diagonal / wide.shape[2]).mean()


def world_loss(settings: WorldFitConfig) -> Callable[[nn.Module, WorldBatch], tuple[Tensor, Mapping[str, Tensor]]]:
    """Return the loss of a step as `train.loop` calls it."""
    weigh = REGULARISERS[settings.regulariser.name]

    def loss(model: nn.Module, batch: WorldBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        z_BTD, predicted = model(batch.frames_BTHWC, batch.blocks_BTA)
        prediction = prediction_loss(z_BTD, predicted)
        penalty, figures = weigh(z_BTD.transpose(0, 1), settings.regulariser, settings.resolved_weight, batch)
        return prediction + penalty, {"prediction_loss": prediction, **figures}

    return loss


def _sigreg(
    z_TBD: Tensor, chosen: RegulariserConfig, weight: float, batch: WorldBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    # A function of the step alone, so every rank draws the same directions and a resumed run draws them again.
    draws = torch_generator(batch.seed, "world.sigreg", batch.step)
    value = sigreg(z_TBD, chosen.num_projections, chosen.num_knots, draws)
    return weight * value, {"sigreg": value}


def _vicreg(
    z_TBD: Tensor, chosen: RegulariserConfig, weight: float, batch: WorldBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    value = vicreg(z_TBD, chosen.variance, chosen.covariance)
    return value, {"vicreg": value}


def _none(
    z_TBD: Tensor, chosen: RegulariserConfig, weight: float, batch: WorldBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    return torch.zeros((), device=z_TBD.device), {}


REGULARISERS: dict[str, Callable[..., tuple[Tensor, dict[str, Tensor]]]] = {
    "none": _none,
    "sigreg": _sigreg,
    "vicreg": _vicreg,
}
