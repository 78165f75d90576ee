"""Denoisers for diffusion over chunks of steps: a residual MLP, and a transformer made of the one block.

Start with config.py and interface.py.
"""

from __future__ import annotations

from forethought.nn.denoisers.build import build_denoiser
from forethought.nn.denoisers.config import DENOISER_PRESETS, DenoiserConfig, denoiser_preset
from forethought.nn.denoisers.interface import Denoiser
from forethought.nn.denoisers.mlp import MLPDenoiser
from forethought.nn.denoisers.regressor import RegressorConfig, SequenceRegressor
from forethought.nn.denoisers.transformer import TransformerDenoiser

__all__ = [
    "DENOISER_PRESETS",
    "Denoiser",
    "DenoiserConfig",
    "MLPDenoiser",
    "RegressorConfig",
    "SequenceRegressor",
    "TransformerDenoiser",
    "build_denoiser",
    "denoiser_preset",
]
