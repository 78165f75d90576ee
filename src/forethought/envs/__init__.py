"""Small built-in environments with native rendering, and wrappers; importing this registers them with Gymnasium.

Raises:
    MissingExtraError: gymnasium is not installed (the extras `world` and `control` bring it).
"""

from forethought.core.extras import require

require("gymnasium", extra="world", purpose="the built-in environments")

from forethought.envs.environment import SystemEnv, SystemVectorEnv  # noqa: E402
from forethought.envs.push_t import PushT  # noqa: E402
from forethought.envs.reacher import Reacher  # noqa: E402
from forethought.envs.registry import IDENTIFIERS, SYSTEMS, make_system, register  # noqa: E402
from forethought.envs.system import Factor, Simulation, System  # noqa: E402
from forethought.envs.two_rooms import TwoRooms  # noqa: E402

register()

__all__ = [
    "IDENTIFIERS",
    "SYSTEMS",
    "Factor",
    "PushT",
    "Reacher",
    "Simulation",
    "System",
    "SystemEnv",
    "SystemVectorEnv",
    "TwoRooms",
    "make_system",
    "register",
]
