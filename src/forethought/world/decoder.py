"""A decoder fitted after the fact, to see what a latent holds: it never trains the model that it looks into.

One linear layer to a small map, then transposed convolutions up to the frame, trained on the frozen latents of frames
with the mean squared error. Imagined latents of a rollout are decoded the same way.

Legend: N frames, D latent width, H W rows and columns.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from forethought.core.config import config
from forethought.core.rng import generator
from forethought.data import Episodes
from forethought.nn import Linear, initialise
from forethought.world.layers import Conv2d
from forethought.world.model import WorldModel


@config
class DecoderConfig:
    """The decoder's size and training."""

    width: int = Field(default=16, ge=1)
    """Channels of the last hidden map, doubled towards the latent."""
    steps: int = Field(default=500, ge=1)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    seed: int = Field(default=0, ge=0)


class Decoder(nn.Module):
    """Latents (N, D) to frames: values in 0 to 1, (N, 3, S, S), with S the model's image size."""

    def __init__(self, latent_size: int, image_size: int, width: int, *, seed: int = 0) -> None:
        super().__init__()
        self.image_size = image_size
        self.levels = max(1, math.floor(math.log2(image_size / 4)))
        self.side = -(-image_size // (1 << self.levels))
        channels = [width << level for level in range(self.levels, -1, -1)]
        self.spread = Linear(latent_size, channels[0] * self.side**2)
        self.convolutions = nn.ModuleList(Conv2d(before, after, 3, padding=1) for before, after in pairwise(channels))
        self.paint = Conv2d(channels[-1], 3, 3, padding=1)
        initialise(self, seed)

    def forward(self, z_ND: Tensor) -> Tensor:
        """Return pictures before they are rounded to bytes."""
        x = self.spread(z_ND).unflatten(1, (-1, self.side, self.side))
        for convolution in self.convolutions:
            x = functional.gelu(convolution(functional.interpolate(x, scale_factor=2.0, mode="nearest")))
        size = self.image_size
        return torch.sigmoid(self.paint(x))[:, :, :size, :size]

    @torch.no_grad()
    def begin_at(self, frames_NHWC: np.ndarray) -> None:
        """Let an untrained decoder paint the mean colour of frames.

        From grey, a small thing on a dark ground is never found: the sigmoid saturates on the way to the ground.
        """
        if self.paint.bias is not None:
            mean = torch.from_numpy(np.asarray(frames_NHWC).mean(axis=(0, 1, 2)) / 255).float()
            self.paint.bias.copy_(torch.logit(mean, eps=1e-3))

    @torch.no_grad()
    def pictures(self, z_ND: Tensor) -> np.ndarray:
        """Return frames uint8 (N, H, W, 3)."""
        painted = self(z_ND.float()).mul(255).round().clamp(0, 255).byte()
        return painted.permute(0, 2, 3, 1).cpu().numpy()


def fit_decoder(model: WorldModel, episodes: Episodes, settings: DecoderConfig | None = None) -> tuple[Decoder, float]:
    """Fit a decoder to a frozen model on the frames of episodes; return it and its last mean squared error.

    Raises:
        InputError: the frames do not fit the model.
    """
    chosen = settings or DecoderConfig()
    frames = episodes.array("frames")
    decoder = Decoder(model.config.latent_size, model.config.image_size, chosen.width, seed=chosen.seed)
    decoder.begin_at(frames[:: max(1, len(frames) // 256)])
    decoder.to(model.action_mean.device)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=chosen.lr)
    recent = 0.0
    for step in range(chosen.steps):
        rows = generator(chosen.seed, "world.decoder", step).integers(0, len(frames), chosen.batch_size)
        batch = torch.from_numpy(np.ascontiguousarray(frames[np.sort(rows)]))
        latents = model.encode_all(batch)
        wanted = batch.to(latents.device).permute(0, 3, 1, 2).float() / 255
        loss = functional.mse_loss(decoder(latents), wanted)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        recent = float(loss.detach()) if step == 0 else 0.95 * recent + 0.05 * float(loss.detach())
    return decoder.eval().requires_grad_(False), recent
