"""Pre-training on a fixed corpus: fit a language model, distil one into another, and measure both honestly."""

from __future__ import annotations

from forethought.pretrain.config import DistillationConfig, FitConfig, ModelShape
from forethought.pretrain.fit import fit, prepare
from forethought.pretrain.objective import distillation_loss, next_token_loss

__all__ = [
    "DistillationConfig",
    "FitConfig",
    "ModelShape",
    "distillation_loss",
    "fit",
    "next_token_loss",
    "prepare",
]
