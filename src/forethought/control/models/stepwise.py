"""The baselines of one step at a time: MLP dynamics rolled out, an MLP policy, MBOP's proposals, behaviour cloning.

    one-step dynamics   s_{t+1} = s_t + f(s_t, h_t, a_t), fed its own predictions F times
    policy              a_t = g(s_t, h_t), least squares (behaviour cloning)
    MBOP proposals      a_t = g(s_t, h_t) + noise, s_{t+1} from the one-step dynamics           (arXiv 2008.05556)

Legend: B environments, N candidates, R rows, F horizon, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from forethought.control.body import Body
from forethought.control.models.base import ControlModel, situation_of, tensor
from forethought.control.models.settings import ModelConfig
from forethought.control.situation import Situation
from forethought.core.errors import ConfigError
from forethought.data.episodes import WindowBatch
from forethought.nn.denoisers import RegressorConfig, SequenceRegressor

_FLOOR = 1e-2
PLANNED = "planned_actions"
"""The array of episodes that holds what a planner would do, for distillation."""


class _StepModel(ControlModel):
    """A regressor of one step: (situation, features of the step) -> numbers."""

    def __init__(self, body: Body, settings: ModelConfig, *, inputs: int, outputs: int, seed: int) -> None:
        super().__init__(body, settings)
        num_context, context_size = self.context_shape
        fields = {name: value for name, value in settings.network.fields().items() if name != "patch"}
        shape = RegressorConfig(
            size=max(1, inputs),
            horizon=1,
            outputs=outputs,
            context_size=context_size,
            num_context=num_context,
            **fields,
        )
        self.network = SequenceRegressor(shape, seed=seed)

    @property
    def reach(self) -> int:
        """Steps ahead that a training window holds: one."""
        return 1

    def _map(self, start: Situation, features_RI: Tensor | None, *, planning: bool = False) -> Tensor:
        context = self.context(start)
        features = context.new_zeros(len(context), 1) if features_RI is None else features_RI
        if self.training and self.settings.input_noise:
            context = context + self.settings.input_noise * torch.randn_like(context)
        network = self.inference() if planning else self.network
        return network(features[:, None], context)


class OneStepDynamics(_StepModel):
    """The autoregressive dynamics that multi-step ones are measured against; a `plan.Dynamics` in real units."""

    part: ClassVar[str] = "dynamics"
    kind: ClassVar[str] = "one-step"
    reach_O: Tensor

    def __init__(self, body: Body, settings: ModelConfig, *, seed: int = 0) -> None:
        super().__init__(body, settings, inputs=body.act_dim, outputs=body.obs_dim, seed=seed)
        self.register_buffer("reach_O", torch.ones(body.obs_dim))

    @torch.no_grad()
    def prepare(self, batch: WindowBatch) -> None:
        """Fit how much each number usually changes in a step."""
        change, known_B = self._change(batch)
        weight = known_B.sum().clamp(min=1.0)
        self.reach_O.copy_(((change.square() * known_B[:, None]).sum(0) / weight).sqrt().clamp(min=_FLOOR))

    def loss(self, batch: WindowBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the squared error of the next state, in units of its usual change."""
        change, known_B = self._change(batch)
        action = self.action.normalise(tensor(batch.actions[:, 0], self.device))
        error_B = (self._map(situation_of(batch, self.device), action) - change / self.reach_O).square().mean(1)
        return (error_B * known_B).sum() / known_B.sum().clamp(min=1.0), {}

    @torch.no_grad()
    def step(self, start: Situation, action_RA: Tensor) -> Situation:
        """Return the predicted situation after one action of each robot."""
        change = self._map(start, self.action.normalise(action_RA), planning=not self.training) * self.reach_O
        following = self.observation.restore(self.observation.normalise(start.obs_BO) + change)
        return advanced(start, action_RA, following)

    @torch.no_grad()
    def __call__(self, start: Situation, actions_BNFA: Tensor) -> Tensor:  # pyright: ignore
        """Return the states (B, N, F, O) of a rollout, each step from the prediction before it."""
        device, num = self.device, actions_BNFA.shape[1]
        place = repeated(start.to(device), num)
        states: list[Tensor] = []
        for action_RA in actions_BNFA.to(device).flatten(0, 1).unbind(1):
            place = self.step(place, action_RA)
            states.append(place.obs_BO)
        return torch.stack(states, dim=1).unflatten(0, (-1, num))

    def _change(self, batch: WindowBatch) -> tuple[Tensor, Tensor]:
        now = self.observation.normalise(tensor(batch.observations, self.device))
        following = self.observation.normalise(tensor(batch.next_observations[:, 0], self.device))
        return following - now, tensor(batch.next_mask_BF[:, 0], self.device)


class ClonedPolicy(_StepModel):
    """Behaviour cloning: the mean action of the data in a situation; planners are distilled into it too."""

    part: ClassVar[str] = "policy"
    kind: ClassVar[str] = "cloning"

    def __init__(self, body: Body, settings: ModelConfig, *, seed: int = 0) -> None:
        super().__init__(body, settings, inputs=0, outputs=body.act_dim, seed=seed)

    def loss(self, batch: WindowBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the squared error of the normalised action."""
        planned = batch.extras.get(PLANNED)
        actions = batch.actions[:, 0] if planned is None else planned[:, self.settings.history]
        wanted = self.action.normalise(tensor(actions, self.device))
        return (self._map(situation_of(batch, self.device), None) - wanted).square().mean(), {}

    @torch.no_grad()
    def __call__(self, start: Situation) -> Tensor:  # pyright: ignore
        """Return one action of each robot, (B, A), inside the bounds."""
        start = start.to(self.device).latest(self.settings.history)
        return self._acts(start, planning=not self.training)

    def _acts(self, start: Situation, *, planning: bool = False) -> Tensor:
        low, high = (bound.to(start.obs_BO.device) for bound in self.body.bounds())
        return self.action.restore(self._map(start, None, planning=planning)).clamp(low, high)

    def actions(self, obs_BO: Tensor, *history: Tensor) -> Tensor:
        """Return actions (B, A) as a function of tensors alone: observation, past observations, actions, mask."""
        if not history:
            B = len(obs_BO)
            history = (
                obs_BO.new_zeros(B, 0, self.body.obs_dim),
                obs_BO.new_zeros(B, 0, self.body.act_dim),
                obs_BO.new_zeros(B, 0),
            )
        seen, done, known = history
        start = Situation(obs_BO, seen, done, known, torch.zeros(1, dtype=torch.long, device=obs_BO.device))
        return self._acts(start)


class MBOPProposal:
    """Action sequences of a cloned policy with noise, rolled through one-step dynamics; a `plan.Proposal`.

    Ranked with SSRConfig(ranking="soft") this is MBOP's weighted mean of noisy rollouts.

    Raises:
        ConfigError: the noise is negative.
    """

    def __init__(self, policy: ClonedPolicy, dynamics: OneStepDynamics, *, noise: float = 0.2) -> None:
        if not noise >= 0.0:
            raise ConfigError(f"the noise {noise} of the proposals must not be negative")
        self.policy, self.dynamics, self.noise = policy, dynamics, noise
        self._rolled: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, start: Situation, num_candidates: int, generator: torch.Generator) -> Tensor:
        """Return (B, N, F, A) actions, inside the bounds."""
        place = repeated(start.to(self.policy.device), num_candidates)
        low, high = (bound.to(self.policy.device) for bound in self.policy.body.bounds())
        spread_A, actions, states = self.noise * self.policy.action.scale, [], []
        for _ in range(self.policy.horizon):
            mean_RA = self.policy(place)
            draw = torch.randn(mean_RA.shape, generator=generator, device=generator.device).to(mean_RA)
            actions.append((mean_RA + spread_A * draw).clamp(low, high))
            place = self.dynamics.step(place, actions[-1])
            states.append(place.obs_BO)
        drawn, reached = (torch.stack(each, dim=1).unflatten(0, (-1, num_candidates)) for each in (actions, states))
        self._rolled = drawn, reached
        return drawn

    @torch.no_grad()
    def predict(self, start: Situation, actions_BNFA: Tensor) -> Tensor:
        """Return the states (B, N, F, O) of the one-step dynamics; those of the last draw are known already."""
        if self._rolled is not None and torch.equal(self._rolled[0], actions_BNFA):
            return self._rolled[1]
        return self.dynamics(start, actions_BNFA)


def repeated(start: Situation, num: int) -> Situation:
    """Return the situation of each robot `num` times over."""
    fields = (start.obs_BO, start.history_obs_BKO, start.history_act_BKA, start.history_mask_BK, start.time_B)
    return Situation(*(field.repeat_interleave(num, dim=0) for field in fields))


def advanced(start: Situation, action_BA: Tensor, following_BO: Tensor) -> Situation:
    """Return the situation after an action led to an observation."""
    if not start.history:
        return replace(start, obs_BO=following_BO, time_B=start.time_B + 1)
    pushed = (
        (start.history_obs_BKO, start.obs_BO),
        (start.history_act_BKA, action_BA),
        (start.history_mask_BK, torch.ones_like(start.history_mask_BK[:, 0])),
    )
    seen, done, known = (torch.cat([ring[:, 1:], value[:, None]], dim=1) for ring, value in pushed)
    return Situation(following_BO, seen, done, known, start.time_B + 1)
