"""The contestants of the world benchmark: a plain training loop, and a rollout over patch tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from forethought.core.rng import generator, torch_generator
from forethought.data import Episodes
from forethought.world import WorldFitConfig, WorldModel
from forethought.world.model import PIXEL_MEAN, PIXEL_STD

Penalty = Callable[[Tensor, WorldFitConfig, torch.Generator], Tensor]


def plain_steps(
    settings: WorldFitConfig, episodes: Episodes, steps: int, penalty: Penalty, *, channels_last: bool
) -> Iterator[float]:
    """Yield after each step of a loop as one would write it from the paper, over the same convolutions and transformer.

    Frames go through the convolutions as NCHW, as image transforms give them, or channels last, which is faster here.
    """
    model = WorldModel(settings.model).train()
    encoder: Any = model.encoder
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.optimiser.lr, weight_decay=1e-3)
    frames, actions = episodes.array("frames"), episodes.array("actions")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    skip, history = settings.model.frame_skip, settings.model.history
    last = int(episodes.lengths.min()) - skip * history
    draws, noise = generator(0, "benchmark"), torch_generator(0, "benchmark.plain")
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.optimiser.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = draws.integers(0, episodes.num_episodes, settings.batch_size)
        rows = episodes.starts[chosen] + draws.integers(0, last, settings.batch_size)
        windows = torch.stack([torch.from_numpy(frames[row : row + skip * history + 1 : skip]) for row in rows])
        blocks = torch.stack([torch.from_numpy(actions[row : row + skip * history]) for row in rows])
        batch = windows.flatten(0, 1).permute(0, 3, 1, 2)
        batch = (batch if channels_last else batch.contiguous()).float() / 255
        x = (batch - mean) / std
        for convolution in encoder.convolutions:
            x = functional.gelu(convolution(x))
        features = encoder.head(x.flatten(1)).unflatten(0, (len(rows), history + 1))
        z = model.projector(features)
        predicted = model.predict(z[:, :history], blocks.reshape(len(rows), history, -1))
        loss = functional.mse_loss(predicted, z[:, 1:])
        loss = loss + settings.resolved_weight * penalty(z.transpose(0, 1), settings, noise)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        yield loss.item()


def broadcast_sigreg(z_TND: Tensor, settings: WorldFitConfig, noise: torch.Generator) -> Tensor:
    """Return SIGReg as its formula reads and as it was published, over one tensor of samples x directions x knots."""
    knots, weights, phi = _quadrature(settings.regulariser.num_knots)
    waves = _projected(z_TND, settings, noise).unsqueeze(-1) * knots
    error = (waves.cos().mean(-3) - phi).square() + waves.sin().mean(-3).square()
    return ((error @ (weights * phi)) * z_TND.shape[1]).mean()


def looped_sigreg(z_TND: Tensor, settings: WorldFitConfig, noise: torch.Generator) -> Tensor:
    """Return SIGReg a knot at a time, as one who has met the memory of the broadcast writes it; autograd does the rest.

    The mean over the directions comes last, so that a knot costs one cosine, one sine and two means.
    """
    projected = _projected(z_TND, settings, noise)
    total = torch.zeros(())
    for knot, weight, phi in torch.stack(_quadrature(settings.regulariser.num_knots), dim=1).tolist():
        waves = projected * knot
        error = (waves.cos().mean(1) - phi).square() + waves.sin().mean(1).square()
        total = total + weight * phi * error.mean()
    return total * z_TND.shape[1]


def _quadrature(num_knots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the knots, the trapezoid's weights over both halves of the line, and the Gaussian's values."""
    knots = torch.linspace(0, 3, num_knots)
    weights = torch.full_like(knots, 2 * float(knots[1]))
    weights[0] = weights[-1] = float(knots[1])
    return knots, weights, torch.exp(-knots.square() / 2)


def _projected(z_TND: Tensor, settings: WorldFitConfig, noise: torch.Generator) -> Tensor:
    directions = torch.randn(z_TND.shape[-1], settings.regulariser.num_projections, generator=noise)
    return z_TND @ (directions / directions.norm(dim=0))


def rolled_patches(model: WorldModel, tokens: int) -> Callable[..., Tensor]:
    """Return dynamics that carry `tokens` patch latents a frame through the same predictor, as patch models do.

    The mean token stands for the frame in the result, so that the same objective applies; what is timed is the rollout.
    """

    def dynamics(start: Any, actions_BNHA: Tensor, /) -> Tensor:
        candidates, horizon = actions_BNHA.shape[1:3]
        x = start.latents_BTD[:, -1:].expand(candidates, tokens, -1)
        conditions = model.action_embedder(actions_BNHA[0])
        steps: list[Tensor] = []
        for step in range(horizon):
            for block in model.predictor.blocks:
                x = block(x, condition=conditions[:, step])
            x = model.prediction_projector(model.predictor.norm(x))
            steps.append(x.mean(1))
        return torch.stack(steps, dim=1)[None]

    return dynamics
