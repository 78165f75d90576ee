"""Is the representation alive: figures of latents and predictions on held-out windows, and the alarm on collapse.

Legend: B windows, T frames, D latent width, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forethought.core.rng import torch_generator
from forethought.world.config import AlarmConfig
from forethought.world.data import WorldBatch
from forethought.world.model import WorldModel
from forethought.world.objective import prediction_loss
from forethought.world.sigreg import floor_value, sigreg


def effective_rank(z_ND: Tensor) -> float:
    """Return the exponential of the entropy of the covariance's normalised spectrum: 1 for a line, D for a ball."""
    centred = (z_ND - z_ND.mean(0)).double()
    spectrum = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0)
    if not float(spectrum.sum()) > 0:
        return 0.0
    shares = spectrum / spectrum.sum()
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def straightness(z_BTD: Tensor) -> float:
    """Return the mean cosine between successive steps of latent paths; 1 for straight lines, 0 where T is below 3."""
    steps = z_BTD.diff(dim=1)
    if steps.shape[1] < 2:
        return 0.0
    return float(torch.cosine_similarity(steps[:, 1:], steps[:, :-1], dim=-1).mean())


def latent_figures(z_BTD: Tensor, predicted: Tensor, *, num_projections: int = 256) -> dict[str, float]:
    """Return every monitor of latents (B, T, D) and of predictions of frames 2 to T.

    `copy_ratio` is the prediction error over that of saying that nothing moves; `sigreg_over_floor` is SIGReg over its
    expectation for perfect latents, at this number of windows.
    """
    rows = z_BTD.flatten(0, 1)
    spread = rows.std(dim=0)
    error, copied = float(prediction_loss(z_BTD, predicted)), float(prediction_loss(z_BTD, z_BTD[:, :-1]))
    draws = torch_generator(0, "world.monitor")
    value = float(sigreg(z_BTD.transpose(0, 1), num_projections, 17, draws))
    return {
        "validation_loss": error,
        "copy_ratio": error / max(copied, 1e-12),
        "spread": float(spread.mean()),
        "spread_lowest": float(spread.min()),
        "effective_rank": effective_rank(rows),
        "sigreg_over_floor": value / floor_value(),
        "straightness": straightness(z_BTD),
    }


@torch.no_grad()
def predict_windows(model: WorldModel, batches: Sequence[WorldBatch]) -> tuple[Tensor, Tensor]:
    """Return the latents and the predictions of windows, in the model's present mode."""
    parts = [model(batch.frames_BTHWC, batch.blocks_BTA) for batch in batches]
    return torch.cat([z for z, _ in parts]).float(), torch.cat([p for _, p in parts]).float()


def collapse_reason(evaluations: Sequence[Mapping[str, Any]], alarm: AlarmConfig) -> str | None:
    """Return why a run counts as collapsed, or None: the last `patience` evaluations must all show one of the signs."""
    last = evaluations[-alarm.patience :]
    if len(last) < alarm.patience:
        return None
    signs = {
        "spread": ("the latents hardly vary: their mean standard deviation", alarm.spread),
        "effective_rank": ("the latents vary along one direction only: their effective rank", alarm.effective_rank),
    }
    for name, (words, limit) in signs.items():
        if all(each[name] < limit for each in last):
            return (
                f"{words} is {last[-1][name]:.3g}, below {limit:g}, in the last {len(last)} evaluations "
                f"(step {last[-1]['step']})"
            )
    return None
