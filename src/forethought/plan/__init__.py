"""Planners that never import a model: they receive functions and return plans."""

from forethought.plan.controller import Controller, ControllerConfig, Moment, from_blocks, to_blocks
from forethought.plan.gradient import GradientPlanner
from forethought.plan.noise import coloured_noise
from forethought.plan.objectives import action_cost, from_score, goal_distance, over_horizon, weighted_sum
from forethought.plan.problem import (
    Candidates,
    Dynamics,
    Iteration,
    Objective,
    Plan,
    Planner,
    Population,
    Problem,
    Proposal,
)
from forethought.plan.proposing import SampleScoreRank
from forethought.plan.sampling import CEM, ICEM, MPPI, Categorical, PredictiveSampling

PLANNERS = {
    "cem": CEM,
    "icem": ICEM,
    "mppi": MPPI,
    "predictive": PredictiveSampling,
    "gradient": GradientPlanner,
    "categorical": Categorical,
}

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "PLANNERS",
    "Candidates",
    "Categorical",
    "Controller",
    "ControllerConfig",
    "Dynamics",
    "GradientPlanner",
    "Iteration",
    "Moment",
    "Objective",
    "Plan",
    "Planner",
    "Population",
    "PredictiveSampling",
    "Problem",
    "Proposal",
    "SampleScoreRank",
    "action_cost",
    "coloured_noise",
    "from_blocks",
    "from_score",
    "goal_distance",
    "over_horizon",
    "to_blocks",
    "weighted_sum",
]
