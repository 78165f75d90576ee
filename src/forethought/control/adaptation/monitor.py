"""A monitor of the dynamics: how surprising is what came, against held-out episodes of the body that was learned.

The error of each observation's prediction becomes a robust z, a conformal p-value and a CUSUM (stats.novelty, the
scores of the world model's surprise). The alarm of the CUSUM is the wish to adapt.

Legend: M windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.control.models import situation_of
from forethought.core.errors import ArtefactError, DataError
from forethought.data.episodes import Episodes, WindowConfig, WindowCutter
from forethought.stats import CUSUM, Novelty


@dataclass(frozen=True)
class Sign:
    """What one residual says: its z, its conformal p, and whether errors have piled up enough to wish for it."""

    residual: float
    z: float
    p: float
    wants_to_adapt: bool


class Monitor:
    """Calibrated on nominal residuals; `update` takes one a step and keeps the wish until `reset`."""

    def __init__(self, novelty: Novelty, cusum: CUSUM) -> None:
        self.novelty, self.cusum = novelty, cusum
        self.wants_to_adapt = False

    @classmethod
    def calibrate(
        cls,
        dynamics: Any,
        nominal: Episodes,
        *,
        execute: int = 1,
        false_alarm: float = 0.01,
        horizon: int = 1000,
        seed: int = 0,
    ) -> Monitor:
        """Calibrate on held-out episodes of the learned body: an alarm within `horizon` steps at rate `false_alarm`.

        `execute` is the agent's executed chunk: later steps of a chunk are predicted from further away.

        Raises:
            DataError: the episodes are too short to measure a residual on.
        """
        residuals = one_step_residuals(dynamics, nominal, execute=execute)
        novelty = Novelty.fit(residuals)
        scores = np.clip(novelty.z(residuals), -10.0, 10.0)
        block = min(8, len(scores))
        cusum = CUSUM.calibrate(scores, false_alarm=false_alarm, horizon=horizon, drift=1.0, block=block, seed=seed)
        return cls(novelty, cusum)

    def update(self, residual: float) -> Sign:
        """Take in the residual of one step; NaN, where nothing was predicted, says nothing."""
        if math.isnan(residual):
            return Sign(residual, 0.0, 1.0, self.wants_to_adapt)
        z, p = float(self.novelty.z(residual)), float(self.novelty.conformal_p(residual))
        # Bounded, so that one broken reading does not count for hundreds of steps.
        if self.cusum.update(min(z, 10.0)):
            self.wants_to_adapt = True
        return Sign(residual, z, p, self.wants_to_adapt)

    def reset(self) -> None:
        """Forget the wish and what led to it, after adapting."""
        self.wants_to_adapt = False
        self.cusum.reset()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"novelty": self.novelty.to_dict(), "cusum": self.cusum.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Monitor:
        """Return the monitor that `to_dict` described.

        Raises:
            ArtefactError: the values are not those of a monitor.
        """
        try:
            return cls(Novelty.from_dict(values["novelty"]), CUSUM.from_dict(values["cusum"]))
        except (KeyError, TypeError) as error:
            raise ArtefactError(f"not a monitor: {error!r}; write one with Monitor.to_dict") from error


@torch.no_grad()
def one_step_residuals(dynamics: Any, episodes: Episodes, *, execute: int = 1) -> NDArray[np.float64]:
    """Return the residuals that an agent would see along episodes: predictions of up to `execute` steps, in order.

    Raises:
        DataError: there is no step whose successor is known.
    """
    window = WindowConfig(history=dynamics.settings.history, horizon=dynamics.settings.horizon)
    cutter = WindowCutter(episodes, window)
    batch = cutter.cut(cutter.anchors[::execute])
    actions = torch.as_tensor(batch.actions, dtype=torch.float32)[:, None]
    states = dynamics(situation_of(batch), actions)[:, 0, :execute]
    error = (
        states - torch.as_tensor(batch.next_observations[:, :execute], dtype=torch.float32)
    ) / dynamics.observation.scale
    known = batch.next_mask_BF[:, :execute].astype(bool)
    if not known.any():
        raise DataError(f"{episodes.source} holds no two observations in a row; give longer episodes")
    return error.square().mean(2).sqrt().double().numpy()[known]
