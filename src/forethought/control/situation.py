"""Where a robot stands: the present observation, the last ones, and the actions between them, in real units.

Before the first step the history repeats the first observation with actions of zero and a mask of 0, as training
windows do (`data.episodes.windows`), so that a reset is nothing that the models have not seen.

Legend: B environments, K history, O numbers an observation, A numbers an action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Situation:
    """The `start` of a planning problem in this room: all that proposal and dynamics are conditioned on."""

    obs_BO: Tensor
    history_obs_BKO: Tensor
    history_act_BKA: Tensor
    history_mask_BK: Tensor
    time_B: Tensor

    @classmethod
    def first(cls, obs_BO: Tensor, act_dim: int, history: int) -> Situation:
        """Return the situation right after a reset."""
        B = len(obs_BO)
        return cls(
            obs_BO,
            obs_BO[:, None].expand(-1, history, -1).clone(),
            obs_BO.new_zeros(B, history, act_dim),
            obs_BO.new_zeros(B, history),
            torch.zeros(B, dtype=torch.long, device=obs_BO.device),
        )

    @property
    def history(self) -> int:
        """How many past steps are kept (K)."""
        return self.history_obs_BKO.shape[1]

    def latest(self, history: int) -> Situation:
        """Return the same situation with only the last steps of its history.

        Only as many as there are; a model that wants more than is kept is refused where it is loaded.
        """
        keep = self.history - min(history, self.history)
        return Situation(
            self.obs_BO,
            self.history_obs_BKO[:, keep:],
            self.history_act_BKA[:, keep:],
            self.history_mask_BK[:, keep:],
            self.time_B,
        )

    def to(self, device: torch.device | str) -> Situation:
        """Return the situation on a device."""
        fields = (self.obs_BO, self.history_obs_BKO, self.history_act_BKA, self.history_mask_BK, self.time_B)
        return Situation(*(tensor.to(device) for tensor in fields))


class History:
    """The last steps of B robots, from which their situation is made; `begin` a robot's episode, then `step`."""

    def __init__(self, num_environments: int, obs_dim: int, act_dim: int, history: int) -> None:
        B = num_environments
        self.obs = np.zeros((B, obs_dim), np.float32)
        self._past_obs = np.zeros((B, history, obs_dim), np.float32)
        self._past_act = np.zeros((B, history, act_dim), np.float32)
        self._mask = np.zeros((B, history), np.float32)
        self._time = np.zeros(B, np.int64)

    def begin(self, index: int, obs_O: NDArray[np.float32]) -> None:
        """Begin a new episode of one robot."""
        self.obs[index] = obs_O
        self._past_obs[index] = obs_O
        self._past_act[index] = 0.0
        self._mask[index] = 0.0
        self._time[index] = 0

    def step(self, index: int, act_A: NDArray[np.float32], obs_O: NDArray[np.float32]) -> None:
        """Take in what a robot did and what it saw after it."""
        for ring, value in ((self._past_obs, self.obs[index]), (self._past_act, act_A), (self._mask, 1.0)):
            if ring.shape[1]:
                ring[index, :-1] = ring[index, 1:]
                ring[index, -1] = value
        self.obs[index] = obs_O
        self._time[index] += 1

    def pass_time(self, index: int) -> None:
        """Let a step pass of which nothing can be used: the robot stays where it was last seen."""
        self._time[index] += 1

    def situation(self, robots: Sequence[int]) -> Situation:
        """Return the present situation of some of the robots."""
        chosen = list(robots)
        arrays = (self.obs, self._past_obs, self._past_act, self._mask, self._time)
        return Situation(*(torch.from_numpy(array[chosen]) for array in arrays))
