"""Planning to a goal image in latent space, and the evaluation of goal-reaching policies.

dynamics.py makes a world model the dynamics of `forethought.plan`; policies.py are the ways to act; subgoals.py finds
far goals over the data's own latents; evaluate.py measures all of them on held-out pairs.
"""

from __future__ import annotations

from forethought.world.planning.amortised import (
    GuidedPolicy,
    InverseConfig,
    InverseDynamics,
    InversePolicy,
    fit_inverse,
)
from forethought.world.planning.arena import SystemArena
from forethought.world.planning.dynamics import LatentDynamics
from forethought.world.planning.evaluate import Arena, EvaluationConfig, Pairs, choose_pairs, evaluate_policies
from forethought.world.planning.policies import GoalConfig, GoalPolicy, NoOpPolicy, Policy, RandomPolicy
from forethought.world.planning.scripted import ScriptedPolicy
from forethought.world.planning.subgoals import SubgoalConfig, SubgoalGraph, SubgoalPolicy

__all__ = [
    "Arena",
    "EvaluationConfig",
    "GoalConfig",
    "GoalPolicy",
    "GuidedPolicy",
    "InverseConfig",
    "InverseDynamics",
    "InversePolicy",
    "LatentDynamics",
    "NoOpPolicy",
    "Pairs",
    "Policy",
    "RandomPolicy",
    "ScriptedPolicy",
    "SubgoalConfig",
    "SubgoalGraph",
    "SubgoalPolicy",
    "SystemArena",
    "choose_pairs",
    "evaluate_policies",
    "fit_inverse",
]
