"""Diffusion models: D-MPC's action proposal and multi-step dynamics (arXiv 2410.05364), Diffuser's joint model.

    rho   x0 = a_{t:t+F-1}        condition (s_t, h_t)
    p_d   x0 = s_{t+1:t+F}        condition (s_t, h_t) and the actions, clean, step by step
    joint x0 = (a, s) a step      condition (s_t, h_t)                                       (arXiv 2205.09991)

States are predicted as changes from s_t, in units of how much each step ahead usually changes: near steps then weigh as
much as far ones.

Legend: B environments, N candidates, R = B N rows, F horizon, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from forethought.control.body import Body
from forethought.control.models.base import ControlModel, rows, situation_of, tensor
from forethought.control.models.settings import ModelConfig
from forethought.control.situation import Situation
from forethought.core.errors import ConfigError
from forethought.data.episodes import WindowBatch
from forethought.diffusion import diffusion_loss, draw_noise, make_grid, sample, train_times
from forethought.nn.denoisers import DenoiserConfig, build_denoiser

_FLOOR = 1e-2


class DiffusionModel(ControlModel):
    """A denoiser over chunks (F, channels), conditioned on the situation and perhaps on clean features of each step."""

    kind = "diffusion"
    channels: int

    def __init__(self, body: Body, settings: ModelConfig, *, channels: int, per_step: int, seed: int) -> None:
        super().__init__(body, settings)
        make_grid(settings.process, settings.sampler)
        self.channels = channels
        self.sampler = settings.sampler
        num_context, context_size = self.context_shape
        shape = DenoiserConfig(
            size=channels,
            horizon=settings.horizon,
            context_size=context_size,
            num_context=num_context,
            aligned_size=per_step,
            **settings.network.fields(),
        )
        self.network = build_denoiser(shape, seed=seed)

    @property
    def num_steps(self) -> int:
        """Denoising steps that a sample takes."""
        return self.sampler.steps

    def with_steps(self, steps: int) -> Self:
        """Return the same model, sharing its parameters, that samples in another number of steps.

        Raises:
            ConfigError: more steps than the schedule has levels.
        """
        if steps == self.sampler.steps:
            return self
        sampler = replace(self.sampler, steps=steps)
        make_grid(self.settings.process, sampler)
        other = copy(self)
        other.sampler = sampler
        return other

    def _loss(self, x0_RFD: Tensor, context: Tensor, mask_RF1: Tensor, aligned: Tensor | None) -> Tensor:
        # The loop seeds torch's generator for every step and gives the caller's state back.
        times = train_times(self.settings.process, len(x0_RFD), torch.default_generator).to(x0_RFD.device)
        return diffusion_loss(
            lambda x, times_R: self.network(x, times_R, context, aligned),
            x0_RFD,
            process=self.settings.process,
            noise=torch.randn_like(x0_RFD),
            times_B=times,
            mask=mask_RF1,
        ).mean()

    def _sample(
        self,
        num_rows: int,
        context: Tensor,
        aligned: Tensor | None,
        generator: torch.Generator | None,
        bounds: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        shape = (num_rows, self.horizon, self.channels)
        if generator is None:
            # The mean of the noise: what a deterministic sampler makes of it is one clear answer to one question.
            noise, between = context.new_zeros(shape), None
        else:
            noise, between = draw_noise(shape, self.sampler, generator)
            noise = noise.to(context)
            between = None if between is None else between.to(context)
        return sample(
            self.inference().bind(context, aligned),
            noise,
            process=self.settings.process,
            sampler=self.sampler,
            between=between,
            bounds=bounds,
        )


class ActionProposal(DiffusionModel):
    """rho: draws whole action sequences that the data could hold; a `plan.Proposal` in real units."""

    part: ClassVar[str] = "proposal"

    def __init__(self, body: Body, settings: ModelConfig, *, seed: int = 0) -> None:
        super().__init__(body, settings, channels=body.act_dim, per_step=0, seed=seed)

    def loss(self, batch: WindowBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the denoising loss over the known actions."""
        device = self.device
        actions = self.action.normalise(tensor(batch.actions, device))
        mask_RF1 = tensor(batch.action_mask_BF, device)[..., None]
        return self._loss(actions * mask_RF1, self.context(situation_of(batch, device)), mask_RF1, None), {}

    @torch.no_grad()
    def __call__(self, start: Situation, num_candidates: int, generator: torch.Generator) -> Tensor:  # pyright: ignore
        """Return (B, N, F, A) actions, inside the body's bounds."""
        start = start.to(self.device)
        context = rows(self.context(start), num_candidates)
        low, high = self.body.bounds(self.device)
        limits = (self.action.normalise(low), self.action.normalise(high))
        actions = self._sample(len(start.obs_BO) * num_candidates, context, None, generator, limits)
        actions = self.action.restore(actions).clamp(low, high)
        return actions.unflatten(0, (-1, num_candidates))


class DiffusionDynamics(DiffusionModel):
    """p_d: predicts all F states at once from the present one and clean actions; a `plan.Dynamics` in real units."""

    part: ClassVar[str] = "dynamics"
    reach_FO: Tensor

    def __init__(self, body: Body, settings: ModelConfig, *, seed: int = 0) -> None:
        if settings.sampler.noisy:
            raise ConfigError(
                f"the dynamics are sampled with {settings.sampler.name}, eta {settings.sampler.eta}, that draws noise; "
                "choose a deterministic sampler (ddim with eta 0, dpm2m, euler or heun)"
            )
        super().__init__(body, settings, channels=body.obs_dim, per_step=body.act_dim, seed=seed)
        self.register_buffer("reach_FO", torch.ones(settings.horizon, body.obs_dim))

    @torch.no_grad()
    def prepare(self, batch: WindowBatch) -> None:
        """Fit how much each number usually changes in each number of steps."""
        change, mask_RF1 = self._change(batch)
        weight = mask_RF1.sum(0).clamp(min=1.0)
        self.reach_FO.copy_(((change.square() * mask_RF1).sum(0) / weight).sqrt().clamp(min=_FLOOR))

    def loss(self, batch: WindowBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the denoising loss over the known states."""
        change, mask_RF1 = self._change(batch)
        actions = self.action.normalise(tensor(batch.actions, self.device))
        context = self.context(situation_of(batch, self.device))
        return self._loss(change / self.reach_FO * mask_RF1, context, mask_RF1, actions), {}

    @torch.no_grad()
    def __call__(self, start: Situation, actions_BNFA: Tensor) -> Tensor:  # pyright: ignore
        """Return the predicted states (B, N, F, O)."""
        device, num = self.device, actions_BNFA.shape[1]
        start = start.to(device)
        actions = self.action.normalise(actions_BNFA.to(device).flatten(0, 1))
        change = self._sample(len(actions), rows(self.context(start), num), actions, None) * self.reach_FO
        states = self.observation.normalise(start.obs_BO)[:, None, None] + change.unflatten(0, (-1, num))
        return self.observation.restore(states)

    def _change(self, batch: WindowBatch) -> tuple[Tensor, Tensor]:
        now = self.observation.normalise(tensor(batch.observations, self.device))
        states = self.observation.normalise(tensor(batch.next_observations, self.device))
        return states - now[:, None], tensor(batch.next_mask_BF, self.device)[..., None]


class JointDiffuser(DiffusionModel):
    """Diffuser's model of actions and states together: it cannot be asked what other actions would do.

    `proposal()` and `dynamics()` give the planner the two halves of one draw.
    """

    part: ClassVar[str] = "joint"
    reach_FO: Tensor

    def __init__(self, body: Body, settings: ModelConfig, *, seed: int = 0) -> None:
        super().__init__(body, settings, channels=body.act_dim + body.obs_dim, per_step=0, seed=seed)
        self.register_buffer("reach_FO", torch.ones(settings.horizon, body.obs_dim))

    prepare = DiffusionDynamics.prepare
    _change = DiffusionDynamics._change

    def loss(self, batch: WindowBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the denoising loss over the known actions and states."""
        change, states_RF1 = self._change(batch)
        actions = self.action.normalise(tensor(batch.actions, self.device))
        actions_RF1 = tensor(batch.action_mask_BF, self.device)[..., None]
        x0 = torch.cat([actions * actions_RF1, change / self.reach_FO * states_RF1], dim=-1)
        mask = torch.cat([actions_RF1.expand_as(actions), states_RF1.expand_as(change)], dim=-1)
        return self._loss(x0, self.context(situation_of(batch, self.device)), mask, None), {}

    @torch.no_grad()
    def draw(self, start: Situation, num_candidates: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return actions (B, N, F, A) and the states (B, N, F, O) drawn with them."""
        start = start.to(self.device)
        low, high = self.body.bounds(self.device)
        context = rows(self.context(start), num_candidates)
        drawn = self._sample(len(start.obs_BO) * num_candidates, context, None, generator)
        drawn = drawn.unflatten(0, (-1, num_candidates))
        actions, change = drawn.split([self.body.act_dim, self.body.obs_dim], dim=-1)
        now = self.observation.normalise(start.obs_BO)[:, None, None]
        return self.action.restore(actions).clamp(low, high), self.observation.restore(now + change * self.reach_FO)


class JointHalves:
    """A joint model behind the two functions of a planner: the dynamics give back the states of the last draw.

    Raises:
        ConfigError: the planner asks for the states of actions that were not drawn (a warm start, a refinement).
    """

    def __init__(self, model: JointDiffuser) -> None:
        self.model = model
        self._states: Tensor | None = None

    def propose(self, start: Situation, num_candidates: int, generator: torch.Generator) -> Tensor:
        """Draw actions and states, and return the actions."""
        actions, self._states = self.model.draw(start, num_candidates, generator)
        return actions

    def predict(self, _start: Situation, actions_BNFA: Tensor) -> Tensor:
        """Return the states that were drawn with these actions."""
        if self._states is None or self._states.shape[:2] != actions_BNFA.shape[:2]:
            raise ConfigError("a joint model knows only the states it drew: switch warm_start and refine off")
        return self._states
