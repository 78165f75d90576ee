"""A world model as the `Dynamics` of forethought.plan: latents in, latents after every action block out.

Legend: B environments, N candidates, H blocks of the horizon, A numbers of a block, T frames of the past, D latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.world.model import WorldModel


@dataclass(frozen=True)
class LatentStart:
    """Where a plan begins: the last T latents (B, T, D), and the T - 1 normalised blocks between them (B, T - 1, A)."""

    latents_BTD: Tensor
    past_BTA: Tensor


class LatentDynamics:
    """Rolls candidate blocks out with the model, seeing at most `history` latents at a time.

    Raises:
        InputError: the model is in training mode.
    """

    def __init__(self, model: WorldModel, history: int = 1) -> None:
        model.require_eval()
        self._model, self._history = model, history

    def __call__(self, start: LatentStart, actions_BNHA: Tensor, /) -> Tensor:
        """Return the predicted latents, (B, N, H, D)."""
        environments, candidates = actions_BNHA.shape[:2]
        latents = _repeat(start.latents_BTD[:, -self._history :], candidates)
        past = _repeat(start.past_BTA[:, start.past_BTA.shape[1] - latents.shape[1] + 1 :], candidates)
        rolled = self._model.rollout(latents, actions_BNHA.flatten(0, 1), past_BTA=past, history=self._history)
        return rolled.unflatten(0, (environments, candidates))


def _repeat(values: Tensor, count: int) -> Tensor:
    return torch.repeat_interleave(values, count, dim=0)
