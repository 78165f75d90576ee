"""A world model as the `Dynamics` of forethought.plan: latents in, latents after every action block out.

Legend: B environments, N candidates, H blocks of the horizon, A numbers of a block, T frames of the past, D latent.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from forethought.world.model import WorldModel

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class LatentStart:
    """Where a plan begins: the last T latents (B, T, D), and the T - 1 normalised blocks between them (B, T - 1, A)."""

    latents_BTD: Tensor
    past_BTA: Tensor


class LatentDynamics:
    """Rolls candidate blocks out with the model, seeing at most `history` latents at a time.

    precision: of the predictor's arithmetic; latents come out in fp32. "auto" is bf16 where the processor multiplies in
    it, which there makes a plan about three times as fast, and fp32 elsewhere.

    Raises:
        InputError: the model is in training mode.
    """

    def __init__(self, model: WorldModel, history: int = 1, precision: Precision = "fp32") -> None:
        model.require_eval()
        self._model, self._history = model, history
        self._lowered = precision == "bf16" or (precision == "auto" and multiplies_in_bf16(model.action_mean.device))

    def __call__(self, start: LatentStart, actions_BNHA: Tensor, /) -> Tensor:
        """Return the predicted latents, (B, N, H, D)."""
        environments, candidates = actions_BNHA.shape[:2]
        latents = _repeat(start.latents_BTD[:, -self._history :], candidates)
        past = _repeat(start.past_BTA[:, start.past_BTA.shape[1] - latents.shape[1] + 1 :], candidates)
        lowered = torch.autocast(latents.device.type, torch.bfloat16) if self._lowered else nullcontext()
        with lowered:
            rolled = self._model.rollout(latents, actions_BNHA.flatten(0, 1), past_BTA=past, history=self._history)
        return rolled.float().unflatten(0, (environments, candidates))


def multiplies_in_bf16(device: torch.device) -> bool:
    """Say whether a device multiplies bfloat16 in hardware; processors without it only lose time on the conversions."""
    if device.type == "cpu":
        # A private name of torch: where it is missing nothing is known, and fp32 is always right.
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _repeat(values: Tensor, count: int) -> Tensor:
    return torch.repeat_interleave(values, count, dim=0)
