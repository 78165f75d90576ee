"""The planner of D-MPC: sample, score, rank, with a budget of time."""

from forethought.control.planning.budget import Budget, Level
from forethought.control.planning.ranking import RANKINGS, rank
from forethought.control.planning.ssr import SSRConfig, SSRPlanner, shift

__all__ = ["RANKINGS", "Budget", "Level", "SSRConfig", "SSRPlanner", "rank", "shift"]
