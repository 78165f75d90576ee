"""What a user asks of the planner: objectives, constraints and what ends an episode, as plain Python."""

from forethought.control.objectives.constraints import Constraint
from forethought.control.objectives.foreseen import Foreseen, freeze
from forethought.control.objectives.functions import ObjectiveError
from forethought.control.objectives.objective import Objective

__all__ = ["Constraint", "Foreseen", "Objective", "ObjectiveError", "freeze"]
