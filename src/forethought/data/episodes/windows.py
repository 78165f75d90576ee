"""Windows of episodes as batches: history, the present, actions and what followed them; a function of the step.

A window stands at a step t of an episode of L steps. Its history are the H steps before t, its future the F actions
from t and the F states after them. Nothing is taken from another episode:

    before the start    states repeat the first one, actions are zero, history_mask is 0
    after the end       states repeat the last known one, actions and rewards are zero, masks are 0

The state after the last action is known where the source stored it (`Episodes.finals`); its mask is 1 then, also where
it is terminal. Without it the last known state is that of the last step.

Legend: B batch, H history, F horizon, K stored extras (positions of the window), N steps.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from forethought.core import rng
from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.data.episodes.table import Episodes

Array = NDArray[Any]
Mask = NDArray[np.float32]
Index = NDArray[np.int64]


@config
class WindowConfig:
    """The shape of a window; lengths are in steps."""

    history: int = Field(default=0, ge=0)
    """Steps before the present one."""
    horizon: int = Field(default=16, ge=1)
    """Actions from the present one on, and states after them."""
    anchors: Literal["all", "whole"] = "all"
    """Which steps a window may stand at: all (with padding), or only those whose whole future is known."""
    extras: tuple[str, ...] = ()
    """Further arrays to cut, state-like, at the offsets -history to horizon."""
    stride: int = Field(default=1, ge=1)
    """Steps between two offsets of the extras; 0 is always one of them."""

    @property
    def offsets(self) -> tuple[int, ...]:
        """The offsets from the present step at which extras are cut."""
        before = self.history // self.stride * self.stride
        return tuple(range(-before, self.horizon + 1, self.stride))


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Windows of one batch, in the units of the data; masks are float32, 1 where the entry is real."""

    rows_B: Index
    """The row of the present step in the flat arrays."""
    history_observations: Array
    """[B, H, O]"""
    history_actions: Array
    """[B, H, A]"""
    history_mask_BH: Mask
    observations: Array
    """[B, O], the present."""
    actions: Array
    """[B, F, A], from the present on."""
    rewards_BF: Array
    action_mask_BF: Mask
    next_observations: Array
    """[B, F, O], after each action."""
    next_mask_BF: Mask
    terminal_BF: Mask
    """1 where the state after this action ended the episode by termination."""
    extras: dict[str, Array] = field(default_factory=dict[str, Array])
    """[B, K, ...] at WindowConfig.offsets, by name."""


class WindowBatches:
    """Training batches of windows: row r of step s is window s * batch_size + r of an endless sequence of epochs.

    Every epoch is a fresh permutation of all anchors, drawn from (seed, stream, epoch); nothing is stored between
    calls, so a resumed run goes on with `batch(step)`. The rows of all ranks together are the same for any world size.

    Raises:
        ConfigError: batch_size is not a positive multiple of world_size, or no window fits.
        DataError: an array that the windows need is missing.
    """

    def __init__(
        self,
        episodes: Episodes,
        window: WindowConfig,
        *,
        batch_size: int,
        seed: int,
        stream: str = "windows",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size or batch_size % world_size:
            raise ConfigError(
                f"batch_size {batch_size} must be a positive multiple of world_size {world_size}, "
                f"and rank {rank} below it"
            )
        self.episodes, self.window, self.batch_size = episodes, window, batch_size
        self._cutter = WindowCutter(episodes, window)
        self._seed, self._stream = seed, stream
        rows = batch_size // world_size
        self._first, self._rows = rank * rows, rows
        self._orders: OrderedDict[int, Index] = OrderedDict()

    @property
    def num_windows(self) -> int:
        """Windows of one epoch."""
        return len(self._cutter.anchors)

    def batch(self, step: int) -> WindowBatch:
        """Return this rank's windows of a step.

        Raises:
            ConfigError: step is negative.
        """
        if step < 0:
            raise ConfigError(f"step {step} is negative; steps count from 0")
        first = step * self.batch_size + self._first
        numbers = np.arange(first, first + self._rows)
        epochs, positions = np.divmod(numbers, self.num_windows)
        rows = np.empty(len(numbers), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._order(int(epoch))[positions[here]]
        return self._cutter.cut(rows)

    def _order(self, epoch: int) -> Index:
        order = self._orders.get(epoch)
        if order is None:
            order = rng.generator(self._seed, self._stream, epoch).permutation(self._cutter.anchors)
            self._orders[epoch] = order
            while len(self._orders) > 2 + self._rows // self.num_windows:
                self._orders.popitem(last=False)
        return order


class WindowCutter:
    """Cuts windows at given rows; `anchors` are the rows [M] that a window may stand at.

    Raises:
        ConfigError: no window fits.
        DataError: an array that the windows need is missing.
    """

    def __init__(self, episodes: Episodes, window: WindowConfig) -> None:
        self._episodes, self._window = episodes, window
        self._observations, self._actions = episodes.observations, episodes.actions
        self._rewards = episodes.arrays.get("rewards")
        self._extras = {name: episodes.array(name) for name in window.extras}
        self._starts = episodes.starts
        self._ends = episodes.starts + episodes.lengths
        self.anchors = self._anchors()
        if not len(self.anchors):
            raise ConfigError(
                f"no window of horizon {window.horizon} fits into episodes of at most {int(episodes.lengths.max())} "
                "steps; lower the horizon or allow padding (anchors='all')"
            )

    def cut(self, rows_B: Index) -> WindowBatch:
        """Return the windows that stand at these rows of the flat arrays."""
        window = self._window
        episode_B = np.searchsorted(self._starts, rows_B, side="right") - 1
        begin_B1, end_B1 = self._starts[episode_B][:, None], self._ends[episode_B][:, None]
        past_BH = rows_B[:, None] + np.arange(-window.history, 0)
        future_BF = rows_B[:, None] + np.arange(window.horizon)
        past_mask_BH, action_mask_BF = past_BH >= begin_B1, future_BF < end_B1
        next_BF, has_final = future_BF + 1, "observations" in self._episodes.finals
        known_BF = next_BF < end_B1 + int(has_final)
        terminal_BF = (next_BF == end_B1) & self._episodes.terminated[episode_B][:, None]
        rewards = self._rewards
        clipped_BF = np.minimum(future_BF, end_B1 - 1)
        return WindowBatch(
            rows_B=rows_B,
            history_observations=self._observations[np.maximum(past_BH, begin_B1)],
            history_actions=_blank(self._actions[np.maximum(past_BH, begin_B1)], past_mask_BH),
            history_mask_BH=past_mask_BH.astype(np.float32),
            observations=self._observations[rows_B],
            actions=_blank(self._actions[clipped_BF], action_mask_BF),
            rewards_BF=np.zeros(future_BF.shape, np.float32)
            if rewards is None
            else _blank(rewards[clipped_BF], action_mask_BF),
            action_mask_BF=action_mask_BF.astype(np.float32),
            next_observations=self._states("observations", self._observations, next_BF, end_B1, episode_B),
            next_mask_BF=known_BF.astype(np.float32),
            terminal_BF=terminal_BF.astype(np.float32),
            extras=self._cut_extras(rows_B, begin_B1, end_B1, episode_B),
        )

    def _cut_extras(self, rows_B: Index, begin_B1: Index, end_B1: Index, episode_B: Index) -> dict[str, Array]:
        if not self._extras:
            return {}
        places_BK = np.maximum(rows_B[:, None] + np.array(self._window.offsets), begin_B1)
        return {name: self._states(name, value, places_BK, end_B1, episode_B) for name, value in self._extras.items()}

    def _states(self, name: str, value: Array, places: Index, end_B1: Index, episode_B: Index) -> Array:
        states = value[np.minimum(places, end_B1 - 1)]
        finals = self._episodes.finals.get(name)
        if finals is not None:
            past_end = places >= end_B1
            which, _ = np.nonzero(past_end)
            states[past_end] = finals[episode_B[which]]
        return states

    def _anchors(self) -> Index:
        if self._window.anchors == "all":
            return np.arange(self._episodes.num_steps)
        known = self._episodes.lengths - 1 + int("observations" in self._episodes.finals)
        counts = np.maximum(known - self._window.horizon + 1, 0)
        before = np.cumsum(counts) - counts
        return np.arange(int(counts.sum())) + np.repeat(self._starts - before, counts)


def _blank(values: Array, mask: NDArray[np.bool_]) -> Array:
    values[~mask] = 0
    return values
