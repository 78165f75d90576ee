"""Push-T: its geometry, its physics, and a pusher that pushes."""

from forethought.envs.push_t.geometry import NAMES, SHAPES, SYMMETRY
from forethought.envs.push_t.system import PushT

__all__ = ["NAMES", "SHAPES", "SYMMETRY", "PushT"]
