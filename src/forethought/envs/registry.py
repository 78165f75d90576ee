"""The built-in systems by name, and their registration with Gymnasium."""

from __future__ import annotations

from typing import Any

import gymnasium

from forethought.core.errors import unknown_name
from forethought.envs.environment import SystemEnv, SystemVectorEnv
from forethought.envs.push_t import PushT
from forethought.envs.reacher import Reacher
from forethought.envs.system import System
from forethought.envs.two_rooms import TwoRooms

SYSTEMS: dict[str, type[System]] = {"two-rooms": TwoRooms, "push-t": PushT, "reacher": Reacher}
IDENTIFIERS = {
    "two-rooms": "forethought/TwoRooms-v0",
    "push-t": "forethought/PushT-v0",
    "reacher": "forethought/Reacher-v0",
}
DOUBLE_INTEGRATOR = "forethought/DoubleIntegrator-v0"
"""No system of pictures: vectors alone, with exact answers (see double_integrator.py)."""


def make_system(name: str, **arguments: Any) -> System:
    """Return a built-in system by its name; arguments go to its class.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in SYSTEMS:
        raise unknown_name("built-in environment", name, SYSTEMS)
    return SYSTEMS[name](**arguments)


def make_env(name: str, system: dict[str, Any] | None = None, **arguments: Any) -> SystemEnv:
    """Return one Gymnasium environment; `system` holds the arguments of the system's class."""
    return SystemEnv(make_system(name, **(system or {})), **arguments)


def make_vector_env(name: str, system: dict[str, Any] | None = None, **arguments: Any) -> SystemVectorEnv:
    """Return many environments in lock-step; `system` holds the arguments of the system's class."""
    arguments.pop("max_episode_steps", None)
    return SystemVectorEnv(make_system(name, **(system or {})), **arguments)


def register() -> None:
    """Register every built-in environment with Gymnasium, once."""
    if DOUBLE_INTEGRATOR not in gymnasium.registry:
        place = "forethought.envs.double_integrator:DoubleIntegrator"
        gymnasium.register(DOUBLE_INTEGRATOR, entry_point=place, max_episode_steps=80)
    for name, identifier in IDENTIFIERS.items():
        if identifier not in gymnasium.registry:
            gymnasium.register(
                identifier,
                entry_point="forethought.envs.registry:make_env",
                vector_entry_point="forethought.envs.registry:make_vector_env",
                max_episode_steps=SYSTEMS[name].max_steps,
                kwargs={"name": name},
            )
