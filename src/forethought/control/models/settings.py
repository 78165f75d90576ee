"""The settings of this room's models: history, horizon, network, diffusion."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import unknown_name
from forethought.diffusion import ProcessConfig, SamplerConfig
from forethought.nn.denoisers import DENOISER_PRESETS


@config
class NetworkConfig:
    """A backbone: a preset of `nn.denoisers`, with its width and depth changed where they are given."""

    preset: str = "cpu"
    """tiny, cpu (residual MLPs over the flattened chunk), patched (several steps a token) or paper (a token a step)."""
    hidden_size: int | None = Field(default=None, ge=8)
    num_layers: int | None = Field(default=None, ge=1)

    def __post_init__(self) -> None:
        if self.preset not in DENOISER_PRESETS:
            raise unknown_name("network", self.preset, DENOISER_PRESETS)

    def fields(self) -> dict[str, Any]:
        """Return the fields of a denoiser's config that this fixes."""
        given = {"hidden_size": self.hidden_size, "num_layers": self.num_layers}
        return {**DENOISER_PRESETS[self.preset], **{name: value for name, value in given.items() if value is not None}}


@config
class ModelConfig:
    """One model: what it sees (history), how far it looks (horizon), its network and its diffusion."""

    history: int = Field(default=0, ge=0)
    """Past steps that it is conditioned on, beside the present observation."""
    horizon: int = Field(default=16, ge=1)
    """Steps of a plan (F)."""
    network: NetworkConfig = NetworkConfig()
    process: ProcessConfig = ProcessConfig()
    sampler: SamplerConfig = SamplerConfig(steps=2, clip=8.0)
    """How it is sampled where the planner does not say otherwise."""
    input_noise: float = Field(default=0.0, ge=0.0)
    """Standard deviation of noise on normalised inputs while a value or a one-step model is trained."""
    members: int = Field(default=1, ge=1)
    """Networks that a value of states averages."""
    pessimism: float = Field(default=0.0, ge=0.0)
    """Standard deviations over the members that are taken off such a value."""
