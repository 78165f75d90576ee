"""Predict outcomes, prepare work for them, and learn which predictions pay: no tokens, no tensors."""

from __future__ import annotations

from forethought.lookahead.allocate import capped_geometric, empirical, geometric, geometric_ideal, uniform
from forethought.lookahead.cache import CacheStatistics, GroupStatistics, OutcomeCache
from forethought.lookahead.statistics import OutcomeHistogram

__all__ = [
    "CacheStatistics",
    "GroupStatistics",
    "OutcomeCache",
    "OutcomeHistogram",
    "capped_geometric",
    "empirical",
    "geometric",
    "geometric_ideal",
    "uniform",
]
