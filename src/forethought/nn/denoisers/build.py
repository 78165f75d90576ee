"""Building a denoiser from its config."""

from __future__ import annotations

from forethought.nn.denoisers.config import DenoiserConfig
from forethought.nn.denoisers.interface import Denoiser
from forethought.nn.denoisers.mlp import MLPDenoiser
from forethought.nn.denoisers.transformer import TransformerDenoiser
from forethought.nn.initialise import initialise

BACKBONES: dict[str, type[Denoiser]] = {"mlp": MLPDenoiser, "transformer": TransformerDenoiser}


def build_denoiser(shape: DenoiserConfig, *, seed: int) -> Denoiser:
    """Return a denoiser with first weights drawn from the seed, on the CPU."""
    denoiser = BACKBONES[shape.backbone](shape)
    initialise(denoiser, seed)
    return denoiser
