"""The body that models are for: sizes and bounds of its spaces, its environment, and the units of its numbers.

Legend: O numbers an observation, A numbers an action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from forethought.core.errors import ArtefactError, ConfigError, DataError
from forethought.data.episodes import Episodes, Normaliser, fit_normaliser

Floats = NDArray[np.float32]
FLOOR = 1e-2
"""The least unit of a number, so that one that is constant in the data cannot be divided by nothing."""


@dataclass(frozen=True)
class Body:
    """Spaces and units: actions lie between low_A and high_A; both normalisers are those of the first training data.

    Models of one body share its units, so they can be swapped one by one; adaptation keeps them.
    """

    env_id: str | None
    low_A: Floats
    high_A: Floats
    observation: Normaliser
    action: Normaliser
    _placed: dict[str, tuple[Tensor, Tensor]] = field(
        default_factory=dict[str, tuple[Tensor, Tensor]], init=False, repr=False, compare=False
    )

    @property
    def obs_dim(self) -> int:
        """Numbers of an observation."""
        return self.observation.size

    @property
    def act_dim(self) -> int:
        """Numbers of an action."""
        return self.action.size

    def bounds(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest action, (A,) each, on a device; they are copied there once."""
        found = self._placed.get(str(device))
        if found is None:
            found = torch.from_numpy(self.low_A).to(device), torch.from_numpy(self.high_A).to(device)
            self._placed[str(device)] = found
        return found

    @property
    def constant(self) -> dict[str, list[int]]:
        """The numbers of an observation and of an action that hardly moved in the data, by their places.

        A constant observation says nothing until it moves, and is bounded then; a constant action is never proposed
        otherwise, so the planner cannot use that actuator.
        """
        return {
            name: np.flatnonzero(units.scale <= np.float32(FLOOR)).tolist()
            for name, units in (("observations", self.observation), ("actions", self.action))
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "env_id": self.env_id,
            "low": self.low_A.tolist(),
            "high": self.high_A.tolist(),
            "observation": _units(self.observation),
            "action": _units(self.action),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Body:
        """Return the body that `to_dict` described.

        Raises:
            ArtefactError: the values are not those of a body.
        """
        try:
            env_id = values["env_id"]
            parts = [np.asarray(values[name], np.float32) for name in ("low", "high")]
            units = [Normaliser.from_arrays(values[name]) for name in ("observation", "action")]
            if not (env_id is None or isinstance(env_id, str)) or {p.shape for p in parts} != {units[1].shift.shape}:
                raise ValueError("the bounds do not fit the actions")
            return cls(env_id, parts[0], parts[1], units[0], units[1])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(f"not the description of a body: {error!r}; save the model again") from error

    def same_as(self, other: Body) -> bool:
        """Say whether models of the two bodies understand one another: equal sizes, bounds and units."""
        left, right = self.to_dict(), other.to_dict()
        return all(left[name] == right[name] for name in ("low", "high", "observation", "action"))


def body_of(episodes: Episodes, *, low: ArrayLike | None = None, high: ArrayLike | None = None) -> Body:
    """Return the body that episodes were logged on; bounds default to -1 and 1, widened to the logged actions.

    Raises:
        DataError: observations or actions are not vectors, or not finite.
        ConfigError: the bounds do not fit the actions.
    """
    observations, actions = episodes.observations, episodes.actions
    for name, values in (("observations", observations), ("actions", actions)):
        if values.ndim != 2:
            raise DataError(
                f"{episodes.source}: {name} have the shape {values.shape}; this room controls vectors. "
                "Flatten them, or use a world model for frames"
            )
    episodes.require_finite(("observations", "actions"))
    logged = np.asarray(actions, np.float32)
    low_A = np.minimum(-1.0, logged.min(0)) if low is None else np.asarray(low, np.float32)
    high_A = np.maximum(1.0, logged.max(0)) if high is None else np.asarray(high, np.float32)
    if low_A.shape != logged.shape[1:] or high_A.shape != low_A.shape or not (low_A < high_A).all():
        raise ConfigError(
            f"bounds of shapes {low_A.shape} and {high_A.shape} do not bound actions of {logged.shape[1]} numbers; "
            "give one low below one high for each"
        )
    return Body(
        env_id=episodes.env_id,
        low_A=low_A.astype(np.float32),
        high_A=high_A.astype(np.float32),
        observation=fit_normaliser(observations, floor=FLOOR),
        action=fit_normaliser(actions, floor=FLOOR),
    )


class Scale:
    """A normaliser in torch: `(x - shift) / scale`, clipped, and back."""

    def __init__(self, normaliser: Normaliser) -> None:
        self.shift, self.scale = torch.from_numpy(normaliser.shift), torch.from_numpy(normaliser.scale)
        self.clip = normaliser.clip

    def normalise(self, values: Tensor) -> Tensor:
        """Return values[..., features] in normalised units."""
        normal = (values - self.shift) / self.scale
        return normal if self.clip is None else normal.clamp(-self.clip, self.clip)

    def restore(self, values: Tensor) -> Tensor:
        """Return normalised values in real units."""
        return values * self.scale + self.shift

    def to(self, device: torch.device | str) -> Scale:
        """Move to a device, in place, and return self."""
        self.shift, self.scale = self.shift.to(device), self.scale.to(device)
        return self


def _units(normaliser: Normaliser) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in normaliser.arrays().items()}
