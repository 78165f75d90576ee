"""The agent's border: what comes in from sensors and out of models is checked here, so that a robot is never let down.

Legend: B robots, O numbers an observation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.core.errors import InputError
from forethought.plan import Plan

Floats = NDArray[np.float32]

# Whatever a model, an objective or a device may raise; an interruption and the end of the program are not among them.
_FAILURES = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


class PlanningError(InputError):
    """A model or a planner failed while a plan was made; the message names what it raised."""


def observed(observation: ArrayLike, wanted: tuple[int, int]) -> tuple[Floats, NDArray[np.bool_], list[InputError]]:
    """Return observations (B, O), which of them can be used, (B,), and what is wrong with the others.

    `wanted` is (B, O); one robot's may come without its first axis.
    """
    problem = ""
    try:
        # Numbers beyond fp32 become infinite, and are found below like every other one that is not finite.
        with np.errstate(over="ignore"):
            given = np.asarray(observation, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        given, problem = np.zeros(0, np.float32), f" ({error})"
    if given.shape != wanted and not (wanted[0] == 1 and given.shape == wanted[1:]):
        robots = "" if wanted[0] == 1 else f", for {wanted[0]} robots {wanted}"
        message = f"the observation has the shape {given.shape}{problem}; this body's has {wanted[1:]}{robots}"
        return np.zeros(wanted, np.float32), np.zeros(wanted[0], bool), [InputError(message)]
    obs_BO = given.reshape(wanted)
    seen_B: NDArray[np.bool_] = np.all(np.isfinite(obs_BO), axis=1)
    errors: list[InputError] = []
    for robot in np.flatnonzero(~seen_B):
        odd = np.flatnonzero(~np.isfinite(obs_BO[robot])).tolist()
        errors.append(InputError(f"the observation of robot {robot} is not finite at {odd[:8]}; check its sensors"))
    return obs_BO, seen_B, errors


def planned(make: Callable[[], Plan]) -> Plan | InputError:
    """Return the plan that `make` makes, or what kept it from that."""
    try:
        return make()
    except InputError as error:
        return error
    except _FAILURES as error:
        failure = PlanningError(
            f"a model or the planner raised {type(error).__name__}: {error}; try proposal, dynamics and value on "
            "agent.situation() by themselves"
        )
        failure.__cause__ = error
        return failure
