"""Whether the parts of an agent fit one another, and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from forethought.control.body import Body
from forethought.control.models import ControlModel, ReturnValue
from forethought.control.objectives import Objective
from forethought.core.errors import ConfigError

Floats = NDArray[np.float32]


def at_precision(part: Any, name: str) -> Any:
    """Return a model that plans in a type by its name, sharing its parameters; what is no model stays as it is."""
    return part.with_precision(getattr(torch, name)) if isinstance(part, ControlModel) else part


def default_objective(value: ReturnValue | None) -> Objective:
    """Return the learned value as an objective.

    Raises:
        ConfigError: there is none.
    """
    if value is None:
        raise ConfigError("the agent has neither an objective nor a learned value; give one of them")
    return Objective.learned(value)


def shared_body(body: Body | None, *models: Any) -> Body:
    """Return the body of the first model that has one.

    Raises:
        ConfigError: none has.
    """
    found = [body] if body is not None else [model.body for model in models if isinstance(model, ControlModel)]
    if not found:
        raise ConfigError("neither proposal nor dynamics is a model of this room; give body=Body(...)")
    return found[0]


def check_parts(body: Body, parts: Sequence[Any]) -> None:
    """Check that all models are of one body, in the same units.

    Raises:
        ConfigError: one is not.
    """
    for part in parts:
        if isinstance(part, ControlModel) and not part.body.same_as(body):
            raise ConfigError(
                f"the {part.part} model is of another body ({part.body.obs_dim} numbers an observation, "
                f"{part.body.act_dim} an action, {part.body.env_id}) than the agent ({body.obs_dim}, {body.act_dim}, "
                f"{body.env_id}), or in other units; train all parts on the same data, or adapt one from the other"
            )


def shared_horizon(*parts: Any) -> int:
    """Return the horizon that all parts have.

    Raises:
        ConfigError: they differ, or none has one.
    """
    horizons = {part.horizon for part in parts if part is not None and hasattr(part, "horizon")}
    if len(horizons) != 1:
        raise ConfigError(f"the parts have the horizons {sorted(horizons)}; all of an agent's look equally far ahead")
    return horizons.pop()


def longest_history(parts: Sequence[Any]) -> int:
    """Return the longest history that a part was trained with."""
    return max((part.settings.history for part in parts if isinstance(part, ControlModel)), default=0)


def rest_action_of(body: Body, action: ArrayLike | None) -> Floats:
    """Return the action that is safe when there is no plan: the given one, or zero, inside the bounds.

    Raises:
        ConfigError: it is no action of the body.
    """
    given = np.zeros(body.act_dim, np.float32) if action is None else np.asarray(action, np.float32)
    if given.shape != (body.act_dim,) or not np.isfinite(given).all():
        raise ConfigError(f"the rest action has the shape {given.shape}; give {body.act_dim} finite numbers")
    return np.clip(given, body.low_A, body.high_A)


def check_spaces(body: Body, observation_space: Any, action_space: Any) -> None:
    """Compare the spaces of an environment with a body's (see `Agent.check_spaces`).

    Raises:
        ConfigError: shapes or bounds differ; the message gives both.
    """
    for name, space, size in (
        ("observations", observation_space, body.obs_dim),
        ("actions", action_space, body.act_dim),
    ):
        shape = tuple(getattr(space, "shape", None) or ())
        if shape != (size,):
            raise ConfigError(
                f"the environment's {name} have the shape {shape}, this agent was trained for ({size},) "
                f"({body.env_id}); choose the environment it was trained for, or train one for this"
            )
    low, high = np.asarray(action_space.low, np.float32), np.asarray(action_space.high, np.float32)
    if (body.low_A < low - 1e-5).any() or (body.high_A > high + 1e-5).any():
        raise ConfigError(
            f"the environment takes actions from {low.tolist()} to {high.tolist()}, this agent gives "
            f"{body.low_A.tolist()} to {body.high_A.tolist()}; train it with the environment's bounds"
        )
