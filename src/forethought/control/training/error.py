"""How good models are on held-out episodes: losses, rollout error by horizon, diversity, calibration.

Legend: M windows, N candidates, F horizon, O observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.control.models import ActionProposal, ControlModel, ReturnValue, situation_of
from forethought.control.models.stepwise import PLANNED
from forethought.core.errors import ConfigError
from forethought.core.rng import derive_seed, generator, torch_generator
from forethought.data.episodes import Episodes, ReturnsToGo, WindowBatch, WindowConfig, WindowCutter, returns_to_go
from forethought.plan import Candidates

_WINDOWS = 1024


@dataclass(frozen=True)
class RolloutError:
    """Root mean square errors by steps ahead, in units of each number's standard deviation: a model's, and that of
    predicting no change."""

    model_F: NDArray[np.float64]
    persistence_F: NDArray[np.float64]

    def to_dict(self) -> dict[str, list[float]]:
        """Return plain JSON values."""
        return {"model": self.model_F.tolist(), "persistence": self.persistence_F.tolist()}


def held_out(episodes: Episodes, window: WindowConfig, *, num: int = _WINDOWS, seed: int = 0) -> WindowBatch:
    """Return up to `num` windows of episodes, drawn without repetition."""
    cutter = WindowCutter(episodes, window)
    order = generator(seed, "control.held-out").permutation(len(cutter.anchors))[:num]
    return cutter.cut(cutter.anchors[np.sort(order)])


@torch.no_grad()
def rollout_error(dynamics: Any, episodes: Episodes, *, num: int = _WINDOWS, seed: int = 0) -> RolloutError:
    """Return the open-loop error of a dynamics model on windows of episodes, fed the actions that were taken.

    Raises:
        ConfigError: the model predicts no states.
    """
    if getattr(dynamics, "part", None) != "dynamics":
        raise ConfigError(f"{type(dynamics).__name__} predicts no states; give a dynamics model")
    window = WindowConfig(history=dynamics.settings.history, horizon=dynamics.settings.horizon)
    batch = held_out(episodes, window, num=num, seed=seed)
    start = situation_of(batch)
    states = dynamics(start, torch.as_tensor(batch.actions, dtype=torch.float32)[:, None])[:, 0]
    truth = torch.as_tensor(batch.next_observations, dtype=torch.float32)
    mask = torch.as_tensor(batch.next_mask_BF)[..., None]
    scale = dynamics.observation.scale
    return RolloutError(_rms((states - truth) / scale, mask), _rms((start.obs_BO[:, None] - truth) / scale, mask))


@torch.no_grad()
def validation_loss(model: ControlModel, episodes: Episodes, *, seed: int = 0, discount: float = 0.99) -> float:
    """Return the training loss on held-out windows with fixed noise; for a value, see `value_calibration`."""
    if isinstance(model, ReturnValue):
        return value_calibration(model, episodes, seed=seed, discount=discount)["error"]
    extras = (PLANNED,) if PLANNED in episodes.arrays else ()
    window = WindowConfig(history=model.settings.history, horizon=model.settings.horizon, extras=extras)
    batch = held_out(episodes, window, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "control.validation"))
        return float(model.loss(batch)[0])


@torch.no_grad()
def value_calibration(
    value: ReturnValue,
    episodes: Episodes,
    *,
    discount: float = 0.99,
    seed: int = 0,
    returns: ReturnsToGo | None = None,
) -> dict[str, float]:
    """Return how a value's predictions stand to the returns of held-out episodes: error (in standard deviations of the
    returns), r2, slope of return on prediction, and bias."""
    window = WindowConfig(history=value.settings.history, horizon=value.settings.horizon)
    returns = returns_to_go(episodes, discount=discount) if returns is None else returns
    batch = held_out(episodes, window, seed=seed)
    known = returns.complete_N[batch.rows_B]
    actual = returns.values_N[batch.rows_B].astype(np.float64)[known]
    if len(actual) < 2:
        return {"error": 0.0, "r2": 0.0, "slope": 0.0, "bias": 0.0}
    parts = (batch.actions, batch.next_observations)
    actions, states = (torch.as_tensor(part, dtype=torch.float32)[:, None] for part in parts)
    predicted = value(Candidates(situation_of(batch), actions, states))[:, 0].double().numpy()[known]
    spread = max(float(actual.std()), 1e-12)
    error = float(np.sqrt(np.mean((predicted - actual) ** 2)))
    centred = predicted - predicted.mean()
    return {
        "error": error / spread,
        "r2": 1.0 - (error / spread) ** 2,
        "slope": float((centred * actual).sum() / max((centred**2).sum(), 1e-12)),
        "bias": float((predicted - actual).mean()),
    }


@torch.no_grad()
def proposal_diversity(
    proposal: ActionProposal, episodes: Episodes, *, num: int = 64, seed: int = 0
) -> dict[str, float]:
    """Return the spread of proposals in one situation against that of the data's actions, and the share at a bound."""
    window = WindowConfig(history=proposal.settings.history, horizon=proposal.settings.horizon)
    batch = held_out(episodes, window, num=64, seed=seed)
    drawn = proposal(situation_of(batch), num, torch_generator(seed, "control.diversity"))
    low, high = proposal.body.bounds()
    edge = 1e-3 * (high - low)
    return {
        "within": float((drawn.std(1) / proposal.action.scale).mean()),
        "between": float((drawn.mean(1).std(0) / proposal.action.scale).mean()),
        "at_bound": float(((drawn <= low + edge) | (drawn >= high - edge)).float().mean()),
    }


def coverage(reached_BNH: Tensor, target: float) -> dict[str, float]:
    """Return how near foreseen values of one quantity come to a target: best and median candidate, distance to each.

    `reached_BNH` holds the quantity for each candidate and step, for example the predicted torso height.
    """
    nearest_BN = (reached_BNH - target).abs().amin(2)
    return {
        "best_distance": float(nearest_BN.amin(1).mean()),
        "median_distance": float(nearest_BN.median(1).values.mean()),
        "highest": float(reached_BNH.max()),
        "lowest": float(reached_BNH.min()),
    }


def _rms(error: Tensor, mask: Tensor) -> NDArray[np.float64]:
    weight = mask.sum((0, 2)).clamp(min=1.0) * error.shape[2]
    return ((error.square() * mask).sum((0, 2)) / weight).sqrt().double().numpy()
