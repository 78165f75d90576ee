"""J, the value of a plan: the discounted return to go, regressed on whole windows (arXiv 2410.05364).

    G_t = sum_j discount^j r_{t+j} to the end of the episode;  loss = (J(s_t, h_t, a_{t:t+F-1}, s_{t+1:t+F}) - G_t)^2

Returns that a time limit cut are unknown and weigh nothing. Past a termination windows repeat the last state with
actions of zero; `objectives.freeze` shows predicted falls to the value in the same way.

Legend: B environments, N candidates, R rows, F horizon, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.control.body import Body
from forethought.control.models.base import ControlModel, rows, situation_of, tensor
from forethought.control.models.settings import ModelConfig
from forethought.core.errors import ConfigError
from forethought.data.episodes import ReturnsToGo, WindowBatch
from forethought.nn.denoisers import RegressorConfig, SequenceRegressor
from forethought.plan import Candidates


class ReturnValue(ControlModel):
    """The learned value of candidates: `(Candidates) -> (B, N)` predicted returns to go, in units of reward."""

    part: ClassVar[str] = "value"
    kind: ClassVar[str] = "regression"
    units_2: Tensor

    def __init__(self, body: Body, settings: ModelConfig, *, seed: int = 0) -> None:
        super().__init__(body, settings)
        num_context, context_size = self.context_shape
        fields = {name: value for name, value in settings.network.fields().items() if name != "patch"}
        shape = RegressorConfig(
            size=body.obs_dim + body.act_dim,
            horizon=settings.horizon,
            context_size=context_size,
            num_context=num_context,
            **fields,
        )
        self.network = SequenceRegressor(shape, seed=seed)
        self.register_buffer("units_2", torch.tensor([0.0, 1.0]))
        self._returns: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def known_returns(returns: ReturnsToGo) -> NDArray[np.float32]:
        """Return the returns that no time limit cut.

        Raises:
            ConfigError: there is none.
        """
        known: NDArray[np.float32] = returns.values_N[returns.complete_N]
        if not len(known):
            raise ConfigError(
                "every return of this data is cut by a time limit, so there is nothing to learn a value from; lower "
                "the discount, or train without a value (parts proposal.diffusion and dynamics.diffusion)"
            )
        return known

    def learn_from(self, returns: ReturnsToGo, *, discount: float = 1.0) -> None:
        """Give the returns to go of the training data, by its rows, and the discount they were made with.

        Raises:
            ConfigError: not one return is whole.
        """
        known = self.known_returns(returns)
        mean, std = float(known.mean()), float(known.std())
        # A constant return has no spread to measure errors in; 1 then stands for its own unit.
        self.units_2.copy_(torch.tensor([mean, max(std, 1e-3 * max(1.0, abs(mean)))]))
        self._returns = torch.from_numpy(returns.values_N), torch.from_numpy(returns.complete_N.astype(np.float32))

    def loss(self, batch: WindowBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the squared error in units of the returns' standard deviation, over the known returns."""
        if self._returns is None:
            raise ConfigError("a value learns from returns: call learn_from(returns_to_go(episodes, ...)) first")
        device, rows_B = self.device, torch.from_numpy(batch.rows_B)
        values_B, known_B = (part[rows_B].to(device) for part in self._returns)
        steps = self._steps(tensor(batch.next_observations, device), tensor(batch.actions, device))
        context = self.context(situation_of(batch, device))
        noise = self.settings.input_noise
        if noise:
            steps, context = steps + noise * torch.randn_like(steps), context + noise * torch.randn_like(context)
        predicted_B = self.network(steps, context)[:, 0]
        target_B = (values_B - self.units_2[0]) / self.units_2[1]
        return ((predicted_B - target_B).square() * known_B).sum() / known_B.sum().clamp(min=1.0), {}

    @torch.no_grad()
    def __call__(self, candidates: Candidates) -> Tensor:  # pyright: ignore
        """Return (B, N) predicted returns to go."""
        device = self.device
        states, actions = candidates.states_BNHS.to(device), candidates.actions_BNHA.to(device)
        num = actions.shape[1]
        steps = self._steps(states.flatten(0, 1), actions.flatten(0, 1))
        context = rows(self.context(candidates.start.to(device)), num)
        predicted = self.inference()(steps, context)[:, 0] * self.units_2[1] + self.units_2[0]
        return predicted.unflatten(0, (-1, num))

    def _steps(self, states: Tensor, actions: Tensor) -> Tensor:
        parts = [self.observation.normalise(states), self.action.normalise(actions)]
        return torch.cat(parts, dim=-1)
