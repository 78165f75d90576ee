"""A planner without a search: inverse dynamics on frozen latents gives the next block from here and the goal.

A small network learns, on the data, which block left latent z_t when z_{t+k} came k blocks later, for every k up to a
horizon. Acting is one pass instead of a search (compare arXiv 2605.08732). Rolled out through the world model, the same
network also gives a search its first guess, which matters where the data act skilfully and chance does not.

Legend: B rows, D latent width, A numbers of a block, H blocks of a plan.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from forethought.core.config import config
from forethought.core.errors import DataError
from forethought.core.rng import generator
from forethought.data import Episodes
from forethought.nn import Linear, initialise
from forethought.plan import Plan, Planner, Problem
from forethought.world.data import encode_rows
from forethought.world.model import WorldModel
from forethought.world.planning.policies import Array, GoalConfig, GoalPolicy


@config
class InverseConfig:
    """The network and its training."""

    hidden_size: int = Field(default=256, ge=1)
    horizon: int = Field(default=5, ge=1)
    """Blocks that may lie between the two latents."""
    steps: int = Field(default=500, ge=1)
    batch_size: int = Field(default=256, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    seed: int = Field(default=0, ge=0)


class InverseDynamics(nn.Module):
    """(z, goal) to the next normalised block; an MLP of two hidden layers."""

    def __init__(self, latent_size: int, block_dim: int, hidden_size: int, *, seed: int = 0) -> None:
        super().__init__()
        self.first = Linear(2 * latent_size, hidden_size)
        self.second = Linear(hidden_size, hidden_size)
        self.last = Linear(hidden_size, block_dim)
        initialise(self, seed)

    def forward(self, z_BD: Tensor, goal_BD: Tensor) -> Tensor:
        """Return normalised blocks (B, A)."""
        x = functional.silu(self.first(torch.cat([z_BD, goal_BD - z_BD], dim=-1)))
        return self.last(functional.silu(self.second(x)))


def fit_inverse(model: WorldModel, episodes: Episodes, settings: InverseConfig | None = None) -> InverseDynamics:
    """Learn inverse dynamics from episodes with the world model frozen; deterministic in the seed.

    Raises:
        DataError: no episode is longer than one block.
    """
    chosen = settings or InverseConfig()
    rows, room = _anchors(episodes, model.config.frame_skip)
    if not len(rows):
        raise DataError(f"{episodes.source}: no episode is longer than a block of {model.config.frame_skip} steps")
    latents_ND = encode_rows(model, episodes)
    actions = torch.from_numpy(np.array(episodes.array("actions"), np.float32)).to(latents_ND.device)
    network = InverseDynamics(model.config.latent_size, model.config.block_dim, chosen.hidden_size, seed=chosen.seed)
    network.to(latents_ND.device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=chosen.lr, weight_decay=1e-3)
    skip = model.config.frame_skip
    for step in range(chosen.steps):
        draws = generator(chosen.seed, "world.inverse", step)
        picked = draws.integers(0, len(rows), chosen.batch_size)
        ahead = 1 + np.floor(draws.random(chosen.batch_size) * np.minimum(room[picked], chosen.horizon)).astype(
            np.int64
        )
        here = torch.from_numpy(rows[picked])
        there = torch.from_numpy(rows[picked] + skip * ahead)
        blocks_BTA = actions[here[:, None] + torch.arange(skip)]
        wanted = model.normalise_blocks(blocks_BTA)[:, 0]
        loss = functional.mse_loss(network(latents_ND[here], latents_ND[there]), wanted)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return network.eval().requires_grad_(False)


class InversePolicy:
    """Acts a block at a time by inverse dynamics towards the goal's latent."""

    def __init__(self, model: WorldModel, network: InverseDynamics) -> None:
        self._model, self._network = model, network
        self._goals_BD: Tensor = torch.empty(0)
        self._queue: list[Array] = []

    def begin(self, goals_BHWC: Array, seed: int) -> None:
        """Encode the goals."""
        self._goals_BD = self._model.encode_all(torch.from_numpy(np.ascontiguousarray(goals_BHWC)))
        self._queue = []

    def act(self, frames_BHWC: Array) -> Array:
        """Return the next raw actions (B, A)."""
        if not self._queue:
            latents_BD = self._model.encode_all(torch.from_numpy(np.ascontiguousarray(frames_BHWC)))
            low, high = self._model.block_bounds()
            blocks_BA = torch.clamp(self._network(latents_BD, self._goals_BD), low, high)
            raw_BTA = self._model.restore_blocks(blocks_BA[:, None]).cpu().numpy()
            self._queue = [raw_BTA[:, index] for index in range(raw_BTA.shape[1])]
        return self._queue.pop(0)


class GuidedPolicy(GoalPolicy):
    """Plans as GoalPolicy does, from a first guess by inverse dynamics and with candidates near to it.

    spread: the standard deviation of the first candidates about the guess, in normalised actions.
    """

    def __init__(
        self,
        model: WorldModel,
        network: InverseDynamics,
        settings: GoalConfig | None = None,
        *,
        spread: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(model, settings, **options)
        self._network, self._spread = network, spread
        self._planner = self._guided(self._planner)

    def guess(self, latents_BTD: Tensor, horizon: int) -> Tensor:
        """Return blocks (B, H, A) that inverse dynamics would take, each from the latent predicted after the last."""
        low, high = self.model.block_bounds()
        latents, past = latents_BTD[:, -1:], latents_BTD.new_zeros(len(latents_BTD), 0, self.model.config.block_dim)
        goals_BD = self.goals_for(latents[:, -1])
        blocks: list[Tensor] = []
        for _ in range(horizon):
            blocks.append(torch.clamp(self._network(latents[:, -1], goals_BD), low, high)[:, None])
            latents = self.model.rollout(latents, blocks[-1], past_BTA=past, history=1)
        return torch.cat(blocks, dim=1)

    def _guided(self, planner: Planner) -> Planner:
        def plan(
            problem: Problem,
            generator: torch.Generator,
            *,
            warm_BHA: Tensor | None = None,
            deadline_s: float | None = None,
        ) -> Plan:
            near = replace(problem, prior_std=torch.full((problem.action_dim,), self._spread))
            guess_BHA = self.guess(problem.start.latents_BTD, problem.horizon)
            return planner(near, generator, warm_BHA=guess_BHA, deadline_s=deadline_s)

        return plan


def _anchors(episodes: Episodes, skip: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows that have at least one later frame a block away, and how many blocks follow each in its episode."""
    rows = np.arange(episodes.num_steps)
    ends = np.repeat(episodes.starts + episodes.lengths, episodes.lengths)
    room = (ends - 1 - rows) // skip
    return rows[room > 0], room[room > 0]
