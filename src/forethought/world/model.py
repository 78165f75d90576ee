"""LeWorldModel: an encoder of frames and a predictor of the next latent, trained together (arXiv 2603.19312).

    z_t = proj(enc(o_t));   zhat_{t+1} = pproj(pred(z_1..z_t, a_1..a_t)), causal, so position t sees nothing later.

A block a_t holds the actions between frame t and frame t + 1, flattened and z-scored with statistics of the data that
the model carries with it. There is no stop-gradient and no moving average of the weights.

Legend: B batch, T frames, H W rows and columns, D latent width, A numbers of an action block, K predicted steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from forethought.core.errors import InputError
from forethought.core.rng import torch_generator
from forethought.nn import Block, initialise
from forethought.nn.block import build_norm
from forethought.nn.vit import ViT
from forethought.world.config import WorldConfig
from forethought.world.layers import ActionEmbedder, ConvEncoder, Projector

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


class Predictor(nn.Module):
    """A causal transformer over latents, each block conditioned on the embedded action block of its position."""

    def __init__(self, config: WorldConfig) -> None:
        super().__init__()
        block = config.predictor_block
        self.positions = nn.Parameter(torch.zeros(1, config.history, config.latent_size))
        self.blocks = nn.ModuleList(Block(block, layer) for layer in range(config.predictor.num_layers))
        self.norm = build_norm(block)

    def forward(self, z_BTD: Tensor, actions_BTD: Tensor) -> Tensor:
        """Return features of the next latents (B, T, D), each from what stands at and before its position."""
        x_BTD = z_BTD + self.positions[:, : z_BTD.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD, causal=True, condition=actions_BTD)
        return self.norm(x_BTD)


class WorldModel(nn.Module):
    """A world model from pixels: encodes frames, predicts latents, and rolls action plans out.

    Frames are uint8 [..., H, W, 3]. Actions are normalised blocks unless said otherwise; `normalise_blocks` and
    `restore_blocks` go between them and the environment's own units.
    """

    action_mean: Tensor
    action_std: Tensor
    action_low: Tensor
    action_high: Tensor
    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, config: WorldConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.facts: dict[str, Any] = {}
        width = config.latent_size
        is_vit = config.encoder.kind == "vit"
        self.encoder = ViT(config.vit) if is_vit else ConvEncoder(config.image_size, config.encoder.width, width)
        self.projector = Projector(config.encoder.width if is_vit else width, config.projector_size, width)
        self.action_embedder = ActionEmbedder(config.block_dim, config.action_bottleneck, width)
        self.predictor = Predictor(config)
        self.prediction_projector = Projector(width, config.projector_size, width)
        self.register_buffer("action_mean", torch.zeros(config.action_dim))
        self.register_buffer("action_std", torch.ones(config.action_dim))
        self.register_buffer("action_low", torch.full((config.action_dim,), -3.0))
        self.register_buffer("action_high", torch.full((config.action_dim,), 3.0))
        mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
        self.register_buffer("pixel_scale", 1 / (255 * std), persistent=False)
        self.register_buffer("pixel_shift", -mean / std, persistent=False)
        initialise(self, seed)
        with torch.no_grad():
            # N(0, 1) as published: three positions must be told apart from the first step on.
            drawn = torch.randn(self.predictor.positions.shape, generator=torch_generator(seed, "world.positions"))
            self.predictor.positions.copy_(drawn)

    def forward(self, frames_BTHWC: Tensor, blocks_BTA: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents z_BTD of all T frames and the predictions zhat of frames 2 to T, (B, T - 1, D).

        Raises:
            InputError: frames or blocks have another shape than the model was built for.
        """
        z_BTD = self.encode(frames_BTHWC)
        steps = z_BTD.shape[1] - 1
        return z_BTD, self.predict(z_BTD[:, :steps], blocks_BTA[:, :steps])

    def encode(self, frames: Tensor) -> Tensor:
        """Return latents [..., D] of uint8 frames [..., H, W, 3].

        Raises:
            InputError: the frames are not uint8 or have another size.
        """
        size = self.config.image_size
        if frames.dtype != torch.uint8 or tuple(frames.shape[-3:]) != (size, size, 3):
            raise InputError(
                f"frames are {frames.dtype} {tuple(frames.shape)}; this model reads uint8 [..., {size}, {size}, 3]"
            )
        features = self._features(frames.reshape(-1, size, size, 3))
        return self.projector(features.reshape(*frames.shape[:-3], -1))

    def predict(self, z_BTD: Tensor, blocks_BTA: Tensor) -> Tensor:
        """Return the predicted next latent after every position, (B, T, D), from at most `history` positions.

        Raises:
            InputError: there are more positions than the model's history, or blocks of another width.
        """
        if z_BTD.shape[1] > self.config.history or blocks_BTA.shape[-1] != self.config.block_dim:
            raise InputError(
                f"latents {tuple(z_BTD.shape)} and blocks {tuple(blocks_BTA.shape)}: at most {self.config.history} "
                f"positions and blocks of {self.config.block_dim} numbers fit this model"
            )
        return self.prediction_projector(self.predictor(z_BTD, self.action_embedder(blocks_BTA)))

    def rollout(
        self, latents_BTD: Tensor, blocks_BKA: Tensor, *, past_BTA: Tensor | None = None, history: int | None = None
    ) -> Tensor:
        """Return the latents (B, K, D) that K action blocks lead to, each predicted from the ones before it.

        `latents_BTD` are the last T encoded frames, oldest first, `past_BTA` the T - 1 blocks between them (None where
        T is 1). At most `history` latents are seen at a time (default: the model's); with 1 the model is Markov and the
        attention costs nothing.

        Raises:
            InputError: the past does not fit, or history is out of range.
        """
        limit = self.config.history if history is None else history
        past = past_BTA if past_BTA is not None else blocks_BKA[:, :0]
        if not 1 <= limit <= self.config.history or past.shape[1] != latents_BTD.shape[1] - 1:
            raise InputError(
                f"history {limit} must be 1 to {self.config.history}, and {latents_BTD.shape[1]} latents need "
                f"{latents_BTD.shape[1] - 1} blocks between them; {past.shape[1]} given"
            )
        seen, done, steps = latents_BTD, past, []
        for step in range(blocks_BKA.shape[1]):
            done = torch.cat([done, blocks_BKA[:, step : step + 1]], dim=1)
            following = self.predict(seen[:, -limit:], done[:, -limit:])[:, -1:]
            seen = torch.cat([seen[:, -limit:], following], dim=1)
            done = done[:, -limit:]
            steps.append(following)
        return torch.cat(steps, dim=1)

    def normalise_blocks(self, actions: Tensor) -> Tensor:
        """Return blocks [..., K, A] from raw actions [..., K * frame_skip, action_dim]; NaN becomes the mean, 0.

        Raises:
            InputError: the actions are no whole number of blocks.
        """
        config = self.config
        if actions.shape[-1] != config.action_dim or actions.shape[-2] % config.frame_skip:
            raise InputError(
                f"actions {tuple(actions.shape)} are no blocks of {config.frame_skip} actions of {config.action_dim} "
                "numbers; give all actions between two kept frames"
            )
        normal = (actions.float() - self.action_mean) / self.action_std
        return torch.nan_to_num(normal, nan=0.0).reshape(*actions.shape[:-2], -1, config.block_dim)

    def restore_blocks(self, blocks: Tensor) -> Tensor:
        """Return raw actions [..., K * frame_skip, action_dim] from normalised blocks [..., K, A]."""
        config = self.config
        normal = blocks.reshape(*blocks.shape[:-2], -1, config.action_dim)
        return normal * self.action_std + self.action_mean

    @torch.no_grad()
    def set_action_statistics(self, mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> None:
        """Give the model the statistics of raw actions: mean, standard deviation, and the range seen in the data."""
        for name, value in (("mean", mean), ("std", std), ("low", low), ("high", high)):
            getattr(self, f"action_{name}").copy_(value)

    def block_bounds(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and highest normalised block (A,) that the data hold, for planners to stay within."""
        mean, std = self.action_mean, self.action_std
        low, high = (self.action_low - mean) / std, (self.action_high - mean) / std
        return low.repeat(self.config.frame_skip), high.repeat(self.config.frame_skip)

    @torch.no_grad()
    def encode_all(self, frames: Tensor, *, batch: int = 256) -> Tensor:
        """Return latents (N, D) of many frames (N, H, W, 3), a batch at a time, without gradients, in eval mode.

        Raises:
            InputError: the model is in training mode, where a latent would depend on its neighbours in the batch.
        """
        self.require_eval()
        device = self.action_mean.device
        parts = [self.encode(frames[at : at + batch].to(device)) for at in range(0, len(frames), batch)]
        return torch.cat(parts) if parts else torch.zeros(0, self.config.latent_size, device=device)

    def require_eval(self) -> None:
        """Refuse to go on in training mode.

        Raises:
            InputError: the model is in training mode.
        """
        if self.training:
            raise InputError("the model is in training mode, where BatchNorm mixes frames; call model.eval() first")

    def num_parameters(self) -> int:
        """Return the number of trainable numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _features(self, frames_NHWC: Tensor) -> Tensor:
        # One fused multiply-add on the frames as they lie; as NCHW they are channels last, which convolutions like.
        x = torch.addcmul(self.pixel_shift, frames_NHWC.float(), self.pixel_scale)
        x = x.permute(0, 3, 1, 2)
        return self.encoder(x)[:, 0] if self.config.encoder.kind == "vit" else self.encoder(x)
