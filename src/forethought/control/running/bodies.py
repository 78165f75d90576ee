"""Changes of a simulated body beyond what wrappers of actions do: mass and friction of a MuJoCo model, in place."""

from __future__ import annotations

from typing import Any

from forethought.core.errors import ConfigError


def scale_mass(env: Any, factor: float) -> Any:
    """Multiply all masses and inertias of an environment's MuJoCo model, and return the environment.

    Raises:
        ConfigError: the factor is not above 0, or the environment is no MuJoCo one.
    """
    model = _model(env, "mass", factor)
    model.body_mass[:] *= factor
    model.body_inertia[:] *= factor
    return env


def scale_friction(env: Any, factor: float) -> Any:
    """Multiply the sliding friction of all surfaces of an environment's MuJoCo model, and return the environment.

    Raises:
        ConfigError: the factor is not above 0, or the environment is no MuJoCo one.
    """
    _model(env, "friction", factor).geom_friction[:, 0] *= factor
    return env


def _model(env: Any, what: str, factor: float) -> Any:
    model = getattr(env.unwrapped, "model", None)
    if not factor > 0 or not hasattr(model, "body_mass"):
        raise ConfigError(
            f"{what} times {factor} for {env.unwrapped!r}: the factor must be above 0 and the environment a MuJoCo one"
        )
    return model
