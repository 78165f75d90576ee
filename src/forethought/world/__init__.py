"""LeWorldModel: a joint-embedding world model from pixels with SIGReg, planning and calibrated surprise.

Start with model.py and sigreg.py; fit.py trains; planning/ plans and evaluates; surprise/ judges what is seen.
"""

from __future__ import annotations

from forethought.world.artefact import load_world_model, save_world_model
from forethought.world.config import PRESETS, WorldConfig, WorldFitConfig, preset
from forethought.world.fit import fit_world, split_episodes
from forethought.world.model import WorldModel
from forethought.world.sigreg import sigreg
from forethought.world.surprise import SurpriseMonitor

__all__ = [
    "PRESETS",
    "SurpriseMonitor",
    "WorldConfig",
    "WorldFitConfig",
    "WorldModel",
    "fit_world",
    "load_world_model",
    "preset",
    "save_world_model",
    "sigreg",
    "split_episodes",
]
