"""The value of a plan by steps: predicted rewards on the way, and the value of the state where it ends.

    J = sum_{k<F} discount^k r(s_{t+k}, a_{t+k}, s_{t+k+1}) + discount^F V(s_{t+F})
    V(s_t) ~ G_t, the discounted return to go; r ~ the logged rewards; both by least squares on single steps

A return regressed on whole windows (`ReturnValue`) sees how a window was padded, which tells how an episode ends and
which no plan shows. Here nothing is ever padded: after an end, which is where a state is held with actions of zero
(`objectives.freeze`), there are no rewards and no value. Several value networks disagree where the data is thin; their
standard deviation times `pessimism` is taken off.

Legend: B environments, N candidates, R rows, M steps, F horizon, O observation, A action, E members.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from forethought.control.body import Body
from forethought.control.models.base import ControlModel, situation_of, tensor
from forethought.control.models.settings import ModelConfig
from forethought.control.models.value import ReturnValue
from forethought.core.errors import ConfigError
from forethought.data.episodes import ReturnsToGo, WindowBatch
from forethought.nn.denoisers import RegressorConfig, SequenceRegressor
from forethought.plan import Candidates

_REWARD_SIZE = 128


class StateValue(ReturnValue):
    """Rewards and the value of a last state, learned apart: `(Candidates) -> (B, N)` in units of reward.

    It knows observations alone, so its history is 0, and it serves plans of any horizon.
    """

    part: ClassVar[str] = "value"
    kind: ClassVar[str] = "state"
    rewards_2: Tensor
    discount: Tensor

    def __init__(self, body: Body, settings: ModelConfig, *, seed: int = 0) -> None:
        if settings.history:
            raise ConfigError(
                f"a value of states sees no history, and {settings.history} steps are asked for; give 0, or train "
                "value.regression"
            )
        ControlModel.__init__(self, body, settings)
        fields = {name: value for name, value in settings.network.fields().items() if name != "patch"}
        of_state = RegressorConfig(size=body.obs_dim, horizon=1, **fields)
        self.network = nn.ModuleList(
            SequenceRegressor(of_state, seed=seed + member) for member in range(settings.members)
        )
        of_step = {**fields, "hidden_size": _REWARD_SIZE, "num_layers": 1}
        self.reward = SequenceRegressor(
            RegressorConfig(size=2 * body.obs_dim + body.act_dim, horizon=1, **of_step), seed=seed
        )
        self.register_buffer("units_2", torch.tensor([0.0, 1.0]))
        self.register_buffer("rewards_2", torch.tensor([0.0, 1.0]))
        self.register_buffer("discount", torch.tensor(1.0))
        self._returns = None

    @property
    def reach(self) -> int:
        """Steps ahead that a training window holds: one."""
        return 1

    @torch.no_grad()
    def prepare(self, batch: WindowBatch) -> None:
        """Fit the units of the rewards."""
        rewards = tensor(batch.rewards_BF[:, 0], self.device)
        self.rewards_2.copy_(torch.stack([rewards.mean(), rewards.std().clamp(min=1e-3)]))

    def learn_from(self, returns: ReturnsToGo, *, discount: float = 1.0) -> None:
        """Give the returns to go of the training data, by its rows, and the discount they were made with.

        Raises:
            ConfigError: not one return is whole.
        """
        super().learn_from(returns)
        self.discount.fill_(discount)

    def loss(self, batch: WindowBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the squared errors of value and reward, each in units of its standard deviation."""
        if self._returns is None:
            raise ConfigError("a value learns from returns: call learn_from(returns_to_go(episodes, ...)) first")
        device, rows_B = self.device, torch.from_numpy(batch.rows_B)
        returns_B, known_B = (part[rows_B].to(device) for part in self._returns)
        now = self.observation.normalise(situation_of(batch, device).obs_BO)
        following = self.observation.normalise(tensor(batch.next_observations[:, 0], device))
        action = self.action.normalise(tensor(batch.actions[:, 0], device))
        target_B = (returns_B - self.units_2[0]) / self.units_2[1]
        weight_B = known_B / known_B.sum().clamp(min=1.0)
        value = now.new_zeros(())
        for member in self.network:
            seen = now + self.settings.input_noise * torch.randn_like(now)
            value = value + ((member(seen[:, None])[:, 0] - target_B).square() * weight_B).sum()
        wanted_B = (tensor(batch.rewards_BF[:, 0], device) - self.rewards_2[0]) / self.rewards_2[1]
        seen_B = tensor(batch.next_mask_BF[:, 0], device)
        error_B = (self._reward(now, action, following) - wanted_B).square()
        reward = (error_B * seen_B).sum() / seen_B.sum().clamp(min=1.0)
        return value / len(self.network) + reward, {"value_loss": value / len(self.network), "reward_loss": reward}

    @torch.no_grad()
    def __call__(self, candidates: Candidates) -> Tensor:  # pyright: ignore
        """Return (B, N): rewards until the plan ends or its episode does, and the value of where it then stands."""
        device = self.device
        states = self.observation.normalise(candidates.states_BNHS.to(device))
        actions = candidates.actions_BNHA.to(device)
        first = self.observation.normalise(candidates.start.obs_BO.to(device))
        B, N, F, _ = states.shape
        before = torch.cat([first[:, None, None].expand(-1, N, 1, -1), states[:, :, :-1]], dim=2)
        alive_BNF = ~_held(before, states, actions)
        steps = [part.flatten(0, 2) for part in (before, self.action.normalise(actions), states)]
        rewards = self._reward(*steps, planning=True).view(B, N, F) * self.rewards_2[1] + self.rewards_2[0]
        weights_F = self.discount ** torch.arange(F, device=device)
        last = self.of_states(states[:, :, -1].flatten(0, 1)).view(B, N)
        return (rewards * weights_F * alive_BNF).sum(2) + self.discount**F * last * alive_BNF[:, :, -1]

    def of_states(self, normal_RO: Tensor) -> Tensor:
        """Return the value (R,) of normalised observations, less its uncertainty."""
        values_ER = torch.stack([self.inference(member)(normal_RO[:, None])[:, 0] for member in self.network])
        value_R = values_ER.mean(0)
        if len(self.network) > 1 and self.settings.pessimism:
            value_R = value_R - self.settings.pessimism * values_ER.std(0)
        return value_R * self.units_2[1] + self.units_2[0]

    def _reward(self, now: Tensor, action: Tensor, following: Tensor, *, planning: bool = False) -> Tensor:
        network = self.inference(self.reward) if planning else self.reward
        return network(torch.cat([now, action, following], dim=-1)[:, None])[:, 0]


def _held(before: Tensor, after: Tensor, actions: Tensor) -> Tensor:
    """Return where a state is held to the bit with an action of zero, which is how what follows an end is shown."""
    return (before == after).all(-1) & (actions == 0).all(-1)
