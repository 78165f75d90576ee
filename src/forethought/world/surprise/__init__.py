"""Surprise: does reality do what the model expected, with calibrated scores online and offline, and a benchmark of it.

monitor.py judges a stream; calibration.py says what is normal; perturbations.py are the things that should surprise
(and those that should not); benchmark.py measures how well the monitor tells them apart.
"""

from __future__ import annotations

from forethought.world.surprise.benchmark import BenchmarkConfig, psychometric_curve, surprise_benchmark
from forethought.world.surprise.calibration import Calibration
from forethought.world.surprise.metrics import Separation, auroc, separation
from forethought.world.surprise.monitor import Event, SurpriseMonitor, Trace
from forethought.world.surprise.perturbations import PERTURBATIONS, Perturbation, perturbation

__all__ = [
    "PERTURBATIONS",
    "BenchmarkConfig",
    "Calibration",
    "Event",
    "Perturbation",
    "Separation",
    "SurpriseMonitor",
    "Trace",
    "auroc",
    "perturbation",
    "psychometric_curve",
    "separation",
    "surprise_benchmark",
]
