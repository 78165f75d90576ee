"""The one training loop, optimisers, schedules, parallelism and fan-out, for all rooms."""

from __future__ import annotations

from forethought.train.fanout import fan_out
from forethought.train.loop import LoopConfig, Record, train
from forethought.train.optim import OPTIMISERS, OptimiserConfig, Optimisers, build_optimisers
from forethought.train.parallel import STRATEGIES, Parallel, open_parallel, open_run
from forethought.train.schedule import SCHEDULES, ScheduleConfig, multiplier

__all__ = [
    "OPTIMISERS",
    "SCHEDULES",
    "STRATEGIES",
    "LoopConfig",
    "OptimiserConfig",
    "Optimisers",
    "Parallel",
    "Record",
    "ScheduleConfig",
    "build_optimisers",
    "fan_out",
    "multiplier",
    "open_parallel",
    "open_run",
    "train",
]
