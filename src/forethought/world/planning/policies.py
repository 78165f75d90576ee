"""Ways to act towards a goal image: plan in latent space, stand still, or act at random.

Legend: B environments, H W rows and columns, A numbers of an action (of a block in BTA), D latent width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.core.rng import generator
from forethought.plan import (
    CEM,
    ICEM,
    Controller,
    ControllerConfig,
    Moment,
    Plan,
    Planner,
    Problem,
    goal_distance,
    over_horizon,
)
from forethought.world.model import WorldModel
from forethought.world.planning.dynamics import LatentDynamics, LatentStart, Precision

Array = NDArray[Any]


class Policy(Protocol):
    """Acts in B environments at once; `begin` names the goals, `act` returns the next raw actions (B, A)."""

    def begin(self, goals_BHWC: Array, seed: int) -> None:
        """Start an episode with goal images, uint8."""
        ...

    def act(self, frames_BHWC: Array) -> Array:
        """Return the next action of every environment in the environment's own units."""
        ...


@config
class GoalConfig:
    """How to plan to a goal image.

    horizon, execute: in action blocks. over: which predicted steps the distance to the goal counts at. history: latents
    that the predictor sees. shrink: the horizon never reaches past `budget` actions (set by the evaluation).
    """

    horizon: int = Field(default=5, ge=1)
    execute: int = Field(default=5, ge=1)
    over: Literal["terminal", "min", "sum"] = "terminal"
    mean_weight: float = Field(default=1e-3, ge=0)
    """For min: weight of the mean over the horizon, which breaks ties in favour of arriving early."""
    history: int = Field(default=1, ge=1)
    shrink: bool = False
    budget: int | None = None
    num_candidates: int = Field(default=128, ge=2)
    num_elites: int = Field(default=12, ge=2)
    num_iterations: int = Field(default=6, ge=1)
    search: Literal["cem", "icem"] = "cem"
    """cem, or icem: smooth candidates, and elites that are kept."""
    precision: Precision = "auto"
    """Arithmetic of the candidates' rollouts: auto, fp32 or bf16."""

    def planner(self) -> CEM | ICEM:
        """Return the planner of these sizes; the published ones are 300, 30 and 10 or 30."""
        kind = CEM if self.search == "cem" else ICEM
        return kind(num_candidates=self.num_candidates, num_elites=self.num_elites, num_iterations=self.num_iterations)


class GoalPolicy:
    """Latent model-predictive control: plans action blocks whose predicted latents come close to the goal's."""

    def __init__(
        self,
        model: WorldModel,
        settings: GoalConfig | None = None,
        *,
        planner: Planner | None = None,
        on_plan: Callable[[Plan], None] | None = None,
    ) -> None:
        self.settings = settings or GoalConfig()
        if self.settings.history > model.config.history:
            raise ConfigError(f"history {self.settings.history} exceeds the model's {model.config.history}; lower it")
        self.model = model
        self._planner = planner or self.settings.planner()
        self._on_plan = on_plan
        self._dynamics = LatentDynamics(model, self.settings.history, self.settings.precision)
        self._goals_BD: Tensor = torch.empty(0)
        self._controller: Controller | None = None
        self._seen: list[Tensor] = []

    def begin(self, goals_BHWC: Array, seed: int) -> None:
        """Encode the goals and forget the last episode."""
        self._goals_BD = self.model.encode_all(torch.from_numpy(np.ascontiguousarray(goals_BHWC)))
        chosen = self.settings
        settings = ControllerConfig(
            horizon=chosen.horizon,
            execute=chosen.execute,
            block=self.model.config.frame_skip,
            budget=chosen.budget,
            shrink=chosen.shrink,
        )
        self._controller = Controller(self._planner, self._problem, settings, seed=seed, on_plan=self._on_plan)
        self._seen = []

    def act(self, frames_BHWC: Array) -> Array:
        """Return the next raw actions (B, A), planning where no action waits."""
        if self._controller is None:
            raise ConfigError("act was called before begin; name the goals first")
        if self._controller.num_actions % self.model.config.frame_skip == 0:
            self._seen = [*self._seen, self.model.encode_all(torch.from_numpy(np.ascontiguousarray(frames_BHWC)))]
            self._seen = self._seen[-self.settings.history :]
        normal_BA = self._controller.act(None)
        return (normal_BA * self.model.action_std + self.model.action_mean).cpu().numpy()

    def goals_for(self, latents_BD: Tensor) -> Tensor:
        """Return the latents to plan to from the present ones: here the goals themselves."""
        return self._goals_BD

    def _problem(self, moment: Moment) -> Problem:
        latents_BTD = torch.stack(self._seen, dim=1)
        blocks = self.model.config.block_dim
        past = latents_BTD.new_zeros(len(latents_BTD), 0, blocks)
        if latents_BTD.shape[1] > 1 and moment.executed_BTA is not None:
            past = moment.executed_BTA[:, -(latents_BTD.shape[1] - 1) :]
        low, high = self.model.block_bounds()
        distance = goal_distance(self.goals_for(latents_BTD[:, -1]))
        weight = self.settings.mean_weight if self.settings.over == "min" else 0.0
        return Problem(
            self._dynamics,
            over_horizon(distance, self.settings.over, mean_weight=weight),
            LatentStart(latents_BTD, past),
            horizon=moment.horizon,
            action_dim=blocks,
            num_environments=len(latents_BTD),
            low=low,
            high=high,
            device=latents_BTD.device,
        )


class NoOpPolicy:
    """Does nothing: what a success rate means when the goal was near anyway."""

    def __init__(self, action_A: Array) -> None:
        self._action = np.asarray(action_A, np.float32)

    def begin(self, goals_BHWC: Array, seed: int) -> None:
        """Start an episode."""

    def act(self, frames_BHWC: Array) -> Array:
        """Return the action that does nothing."""
        return np.repeat(self._action[None], len(frames_BHWC), axis=0)


class RandomPolicy:
    """Acts uniformly within the range of the data's actions."""

    def __init__(self, low_A: Array, high_A: Array) -> None:
        self._low, self._high = np.asarray(low_A, np.float32), np.asarray(high_A, np.float32)
        self._draws = generator(0, "world.random")

    def begin(self, goals_BHWC: Array, seed: int) -> None:
        """Start an episode."""
        self._draws = generator(seed, "world.random")

    def act(self, frames_BHWC: Array) -> Array:
        """Return random actions."""
        return self._draws.uniform(self._low, self._high, (len(frames_BHWC), len(self._low))).astype(np.float32)
