"""Wrappers around Gymnasium environments: defects and events, and any environment as one of pictures and states."""

from forethought.envs.wrappers.adapt import PixelsAndState, resize
from forethought.envs.wrappers.defects import (
    ActionDelay,
    ActionGain,
    ActuatorDisabled,
    ActuatorLimit,
    Freeze,
    RecolouredObservation,
    Teleport,
)

__all__ = [
    "ActionDelay",
    "ActionGain",
    "ActuatorDisabled",
    "ActuatorLimit",
    "Freeze",
    "PixelsAndState",
    "RecolouredObservation",
    "Teleport",
    "resize",
]
