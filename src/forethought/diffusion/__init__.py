"""Diffusion and flow: noise schedules, predictions, the loss, samplers and distillation, as functions of functions.

Start with process.py and sampling.py.
"""

from __future__ import annotations

from forethought.diffusion.distil import consistency_loss, one_step_loss
from forethought.diffusion.grid import Grid, SamplerConfig, make_grid
from forethought.diffusion.prediction import PREDICTIONS, target, to_eps, to_x0
from forethought.diffusion.process import Denoise, ProcessConfig, add_noise, diffusion_loss, train_times
from forethought.diffusion.sampling import Bounds, Inpaint, draw_noise, sample
from forethought.diffusion.schedule import SCHEDULES, ScheduleConfig, levels

__all__ = [
    "PREDICTIONS",
    "SCHEDULES",
    "Bounds",
    "Denoise",
    "Grid",
    "Inpaint",
    "ProcessConfig",
    "SamplerConfig",
    "ScheduleConfig",
    "add_noise",
    "consistency_loss",
    "diffusion_loss",
    "draw_noise",
    "levels",
    "make_grid",
    "one_step_loss",
    "sample",
    "target",
    "to_eps",
    "to_x0",
    "train_times",
]
