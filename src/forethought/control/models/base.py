"""What all models of this room share: a body, a context made of the situation, a loss on windows, and a hash.

Rows: planners ask for B environments times N candidates, models work on R = B N rows.

Legend: B environments or batch, N candidates, R rows, K history, F horizon, O observation, A action, C numbers a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import copy
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from forethought.control.body import Body, Scale
from forethought.control.models.inference import Inference
from forethought.control.models.settings import ModelConfig
from forethought.control.situation import Situation
from forethought.core.errors import ConfigError
from forethought.data.episodes import WindowBatch


class ControlModel(nn.Module):
    """A trained part of an agent; `part` names its place there, `kind` what it is.

    Subclasses build a network in __init__ and define `loss(batch)` on a window batch in real units.
    """

    part: ClassVar[str]
    kind: ClassVar[str]

    def __init__(self, body: Body, settings: ModelConfig) -> None:
        super().__init__()
        self.body, self.settings = body, settings
        self.observation, self.action = Scale(body.observation), Scale(body.action)
        self.precision = torch.float32
        self._inference = Inference()

    def with_precision(self, dtype: torch.dtype) -> Self:
        """Return the same model, sharing its parameters, whose network plans in another type (bfloat16)."""
        if dtype == self.precision:
            return self
        other = copy(self)
        other.precision = dtype
        return other

    def inference(self, network: Any = None) -> Any:
        """Return a network (the model's own by default) as planning runs it: with the weights of now, laid out for
        speed, without gradients."""
        own: Any = self.network if network is None else network
        return self._inference.of(own, self.precision)

    @property
    def horizon(self) -> int:
        """Steps of a plan."""
        return self.settings.horizon

    @property
    def reach(self) -> int:
        """Steps ahead that a training window holds."""
        return self.horizon

    @property
    def context_shape(self) -> tuple[int, int]:
        """Tokens that the situation is given as, and numbers of each: (K + 1, O + A + 1)."""
        return self.settings.history + 1, self.body.obs_dim + self.body.act_dim + 1

    def context(self, situation: Situation) -> Tensor:
        """Return the normalised situation as tokens (observation, action, known): the history, then the present.

        Raises:
            ConfigError: the situation keeps a shorter history than the model was trained with.
        """
        wanted = self.settings.history
        if situation.history < wanted:
            raise ConfigError(
                f"the {self.part} model was trained with a history of {wanted} steps and is given {situation.history}; "
                "give the agent at least that much"
            )
        obs_BO = self.observation.normalise(situation.obs_BO)
        blank = obs_BO.new_zeros(len(obs_BO), self.body.act_dim)
        present_B1C = torch.cat([obs_BO, blank, torch.ones_like(obs_BO[:, :1])], dim=1)[:, None]
        if not wanted:
            return present_B1C
        past = situation.latest(wanted)
        known_BK1 = past.history_mask_BK[..., None]
        # Actions before the start are zero in normalised units, as the mask says.
        actions = self.action.normalise(past.history_act_BKA) * known_BK1
        past_BKC = torch.cat([self.observation.normalise(past.history_obs_BKO), actions, known_BK1], dim=2)
        return torch.cat([past_BKC, present_B1C], dim=1)

    def loss(self, batch: WindowBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the training loss of a batch of windows and figures worth logging; draws from torch's generator."""
        raise NotImplementedError(f"{type(self).__name__} has no loss of its own")

    @torch.no_grad()
    def prepare(self, batch: WindowBatch) -> None:
        """Fit what is fitted and not trained to a large batch of windows, once, before training."""

    def fingerprint(self) -> str:
        """Return the SHA-256 over all parameters and buffers by name: equal exactly where every bit is."""
        return fingerprint(self)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.parameters()).device

    def place(self, device: torch.device | str) -> ControlModel:
        """Move the model and its units to a device, and return it."""
        self.to(device)
        self.observation.to(device)
        self.action.to(device)
        return self


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 over all parameters and buffers of a module, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def situation_of(batch: WindowBatch, device: torch.device | str = "cpu") -> Situation:
    """Return the situations that the windows of a batch stand in."""
    parts = (batch.observations, batch.history_observations, batch.history_actions, batch.history_mask_BH)
    now, seen, done, known = (torch.as_tensor(part, dtype=torch.float32).to(device) for part in parts)
    return Situation(now, seen, done, known, torch.zeros(len(now), dtype=torch.long, device=device))


def rows(values: Tensor, num: int) -> Tensor:
    """Return (B, ...) repeated for `num` candidates each, (B N, ...); one environment's stays one shared row."""
    return values if len(values) == 1 else values.repeat_interleave(num, dim=0)


def tensor(values: object, device: torch.device | str) -> Tensor:
    """Return an array of a window batch as a float tensor on a device."""
    return torch.as_tensor(values, dtype=torch.float32).to(device)
