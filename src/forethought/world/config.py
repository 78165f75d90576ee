"""The shape of a world model, its presets, and the settings of a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import ConfigError, unknown_name
from forethought.nn.config import BlockConfig, Depth, Size
from forethought.nn.vit import Pixels, ViTConfig
from forethought.train import LoopConfig, OptimiserConfig, ScheduleConfig

Probability = Annotated[float, Field(ge=0, lt=1)]


@config
class EncoderConfig:
    """Which network reads a frame: small convolutions for a CPU, or a vision transformer."""

    kind: Literal["conv", "vit"] = "conv"
    """conv, or vit."""
    width: Size = 16
    """Channels of the first convolution, doubled at each halving; the width of a ViT."""
    patch_size: Pixels = 14
    """Side of a ViT's patches in pixels."""
    num_layers: Depth = 12
    """Blocks of a ViT."""
    num_heads: Size = 3
    """Heads of a ViT."""


@config
class PredictorConfig:
    """The causal transformer that predicts the next latent from latents and action blocks."""

    num_layers: Depth = 3
    num_heads: Size = 4
    head_dim: Size = 32
    intermediate_size: Size = 768
    dropout: Probability = 0.1
    inner_norm: bool = False
    """A second LayerNorm in each sublayer, as the published weights have it."""


@config
class WorldConfig:
    """Everything that decides the shapes of a world model's tensors.

    Raises:
        ConfigError: sizes do not fit one another.
    """

    image_size: Pixels = 64
    """Side of the square frames, in pixels."""
    action_dim: Annotated[int, Field(ge=1, le=4096)] = 2
    """Numbers of one action; set from the data."""
    frame_skip: Annotated[int, Field(ge=1, le=1000)] = 5
    """Environment steps between two frames, and actions of a block."""
    history: Annotated[int, Field(ge=1, le=64)] = 3
    """Frames that the predictor sees at most."""
    latent_size: Size = 192
    projector_size: Size = 512
    """Hidden width of the two projectors."""
    action_bottleneck: Size = 10
    """Width to which an action block is first mapped."""
    encoder: EncoderConfig = EncoderConfig()
    predictor: PredictorConfig = PredictorConfig()

    def __post_init__(self) -> None:
        if self.encoder.kind == "vit":
            _ = self.vit
        elif self.image_size < 16:
            raise ConfigError(f"image_size {self.image_size} is too small for convolutions; give at least 16")

    @property
    def block_dim(self) -> int:
        """Numbers of an action block."""
        return self.frame_skip * self.action_dim

    @property
    def num_frames(self) -> int:
        """Frames of a training window."""
        return self.history + 1

    @property
    def vit(self) -> ViTConfig:
        """The shape of the encoder where it is a vision transformer."""
        block = BlockConfig(
            hidden_size=self.encoder.width,
            num_heads=self.encoder.num_heads,
            intermediate_size=4 * self.encoder.width,
            norm="layer",
            norm_eps=1e-12,
            mlp="gelu",
            qkv_bias=True,
            attention_output_bias=True,
            mlp_bias=True,
        )
        return ViTConfig(
            block=block,
            image_size=self.image_size,
            patch_size=self.encoder.patch_size,
            num_layers=self.encoder.num_layers,
        )

    @property
    def predictor_block(self) -> BlockConfig:
        """The shape of a block of the predictor."""
        chosen = self.predictor
        return BlockConfig(
            hidden_size=self.latent_size,
            num_heads=chosen.num_heads,
            head_dim=chosen.head_dim,
            intermediate_size=chosen.intermediate_size,
            norm="layer",
            mlp="gelu",
            attention_output_bias=True,
            mlp_bias=True,
            condition_size=self.latent_size,
            inner_norm=chosen.inner_norm,
            dropout=chosen.dropout,
        )


def lewm() -> WorldConfig:
    """Return the published shape (arXiv 2603.19312): ViT-Tiny at 224 px, predictor of 6 layers, about 18 M."""
    return WorldConfig(
        image_size=224,
        projector_size=2048,
        encoder=EncoderConfig(kind="vit", width=192),
        predictor=PredictorConfig(
            num_layers=6, num_heads=16, head_dim=64, intermediate_size=2048, dropout=0.1, inner_norm=True
        ),
    )


def small() -> WorldConfig:
    """Return the shape that a CPU trains in a minute: convolutions at 64 px, a predictor of 3 layers."""
    return WorldConfig()


def tiny() -> WorldConfig:
    """Return a shape for tests and for a first look: 32 px, latents of 64."""
    return WorldConfig(
        image_size=32,
        latent_size=64,
        projector_size=128,
        encoder=EncoderConfig(width=8),
        predictor=PredictorConfig(num_layers=2, num_heads=2, intermediate_size=128, dropout=0.0),
    )


PRESETS: dict[str, Callable[[], WorldConfig]] = {"lewm": lewm, "small": small, "tiny": tiny}


def preset(name: str) -> WorldConfig:
    """Return a preset by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRESETS:
        raise unknown_name("preset of a world model", name, PRESETS)
    return PRESETS[name]()


@config
class RegulariserConfig:
    """What keeps the latents from collapsing: sigreg, vicreg, or none to see them collapse."""

    name: Literal["sigreg", "vicreg", "none"] = "sigreg"
    """sigreg, vicreg or none."""
    strength: float = Field(default=11.5, ge=0)
    """lambda times batch: SIGReg grows with the batch, so that this, and not lambda, is what stays the same."""
    num_projections: int = Field(default=1024, ge=1)
    """Random directions of SIGReg, drawn anew at every step."""
    num_knots: int = Field(default=17, ge=2)
    """Knots of SIGReg's integral on [0, 3]."""
    variance: float = Field(default=18.0, ge=0)
    """Weight of VICReg's variance term."""
    covariance: float = Field(default=12.0, ge=0)
    """Weight of VICReg's covariance term."""


@config
class AlarmConfig:
    """When a run counts as collapsed: latents that hardly vary, or that vary along one direction only."""

    spread: float = Field(default=0.2, ge=0)
    """Alarm where the mean standard deviation of a latent's numbers is below this; SIGReg pulls it to 1."""
    effective_rank: float = Field(default=2.0, ge=0)
    """Alarm where the exponential of the entropy of the covariance's spectrum is below this."""
    patience: int = Field(default=2, ge=1)
    """Evaluations in a row that must show it."""
    action: Literal["stop", "record"] = "stop"
    """Stop the run with the reason, or go on and write the reason into the result."""


@config
class WorldFitConfig:
    """A training run of a world model.

    Raises:
        ConfigError: a checkpoint would fall on a step without an evaluation, which is when BatchNorm is recalibrated.
    """

    model: WorldConfig = Field(default_factory=small)
    regulariser: RegulariserConfig = RegulariserConfig()
    alarm: AlarmConfig = AlarmConfig()
    batch_size: int = Field(default=64, ge=2)
    """Windows a step, over all processes."""
    seed: int = Field(default=0, ge=0)
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of whole episodes that training never sees."""
    calibration_windows: int = Field(default=512, ge=8)
    """Training windows from which the BatchNorm statistics are taken anew at every evaluation."""
    evaluation_windows: int = Field(default=256, ge=8)
    """Held-out windows of an evaluation."""
    optimiser: OptimiserConfig = OptimiserConfig(lr=5e-4, weight_decay=1e-3, beta2=0.999)
    loop: LoopConfig = LoopConfig(
        steps=300, evaluate_every=50, checkpoint_every=100, schedule=ScheduleConfig(warmup=0.1)
    )
    parallel: str = "none"
    device: str = "cpu"

    def __post_init__(self) -> None:
        loop = self.loop
        if not loop.evaluate_every:
            raise ConfigError("evaluate_every is 0; a world model is evaluated (and recalibrated) before every save")
        if loop.checkpoint_every % loop.evaluate_every:
            raise ConfigError(
                f"checkpoint_every {loop.checkpoint_every} is no multiple of evaluate_every {loop.evaluate_every}; "
                "BatchNorm is recalibrated at evaluations, and every checkpoint has to hold it recalibrated"
            )
        if loop.ema_decay is not None or loop.accumulate != 1:
            raise ConfigError(
                "a JEPA with SIGReg takes no weight average, and accumulating does not make a larger batch for SIGReg "
                "or BatchNorm; leave ema_decay and accumulate alone and choose batch_size"
            )

    @property
    def resolved_weight(self) -> float:
        """Lambda itself: the strength over the batch."""
        return self.regulariser.strength / self.batch_size


def paper() -> WorldFitConfig:
    """Return the published training: batch 128, AdamW at 5e-5, bf16, one epoch's worth of steps to be set."""
    return dataclasses.replace(
        WorldFitConfig(),
        model=lewm(),
        batch_size=128,
        optimiser=OptimiserConfig(lr=5e-5, weight_decay=1e-3, beta2=0.999),
        loop=LoopConfig(
            steps=10_000,
            precision="bf16",
            evaluate_every=500,
            checkpoint_every=1000,
            schedule=ScheduleConfig(warmup=0.01),
        ),
    )
