"""The engine on a virtual clock: shipped loop, scheduler, cache, fan-out and planner; only the passes are simulated."""

from __future__ import annotations

from forethought.decode.simulate.behaviour import Behaviour, RankLaw, Recording
from forethought.decode.simulate.clock import VirtualClock
from forethought.decode.simulate.closed_forms import critical_batch_size, ssd_speedup, tokens_per_round
from forethought.decode.simulate.profile import Profile, load_profile, profile_names
from forethought.decode.simulate.runner import Simulated, simulate
from forethought.decode.simulate.source import SimulatedSource
from forethought.decode.simulate.table import comparison
from forethought.decode.simulate.verifier import SimulatedVerifier

__all__ = [
    "Behaviour",
    "Profile",
    "RankLaw",
    "Recording",
    "Simulated",
    "SimulatedSource",
    "SimulatedVerifier",
    "VirtualClock",
    "comparison",
    "critical_batch_size",
    "load_profile",
    "profile_names",
    "simulate",
    "ssd_speedup",
    "tokens_per_round",
]
