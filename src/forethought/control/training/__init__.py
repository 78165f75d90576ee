"""Training of the parts, and how good they are on held-out episodes."""

from forethought.control.training.config import BASELINES, PARTS, PRESETS, AgentTraining, PartConfig, preset
from forethought.control.training.error import (
    RolloutError,
    coverage,
    proposal_diversity,
    rollout_error,
    validation_loss,
    value_calibration,
)
from forethought.control.training.fit import Data, fit_part

__all__ = [
    "BASELINES",
    "PARTS",
    "PRESETS",
    "AgentTraining",
    "Data",
    "PartConfig",
    "RolloutError",
    "coverage",
    "fit_part",
    "preset",
    "proposal_diversity",
    "rollout_error",
    "validation_loss",
    "value_calibration",
]
