"""Policies in environments: run episodes, collect them as data, and report returns with their uncertainty."""

from forethought.control.running.collect import ExploreConfig, collect
from forethought.control.running.episodes import Finished, run_episodes
from forethought.control.running.known import KNOWN, Known, known
from forethought.control.running.methods import METHODS, method
from forethought.control.running.policies import Policy, RandomPolicy, ReactivePolicy, ScriptedPolicy, open_sb3
from forethought.control.running.report import evaluate, write_csv

__all__ = [
    "KNOWN",
    "METHODS",
    "ExploreConfig",
    "Finished",
    "Known",
    "Policy",
    "RandomPolicy",
    "ReactivePolicy",
    "ScriptedPolicy",
    "collect",
    "evaluate",
    "known",
    "method",
    "open_sb3",
    "run_episodes",
    "write_csv",
]
