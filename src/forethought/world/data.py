"""Episodes as training windows of a world model: frames a skip apart and the action blocks between them.

An episode set holds `frames` (uint8 [N, S, S, 3]) and `actions` ([N, A]); row t's action leaves frame t. A window of T
frames spans (T - 1) * skip steps of one episode; it never straddles a reset.

Legend: B batch, T frames of a window, H W rows and columns, A numbers of an action block, N steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.core.errors import DataError
from forethought.data import Episodes, WindowBatches, WindowConfig, WindowCutter
from forethought.world.config import WorldConfig
from forethought.world.model import WorldModel

Array = NDArray[Any]


@dataclass(frozen=True)
class WorldBatch:
    """Windows of one step: frames uint8, blocks normalised and one fewer than frames, and the step's coordinates."""

    frames_BTHWC: Tensor
    blocks_BTA: Tensor
    step: int
    seed: int


@dataclass(frozen=True)
class ActionStatistics:
    """Mean, standard deviation and range of raw actions, and how many rows held NaN (read as the mean)."""

    mean: Array
    std: Array
    low: Array
    high: Array
    num_nan_rows: int


class Windows:
    """Training windows of episodes for one model, by step or by row; a batch is a function of its step.

    Raises:
        DataError: frames or actions are missing or have another shape than the model reads.
        ConfigError: no window fits into the episodes, or the batch does not divide over the processes.
    """

    def __init__(
        self, episodes: Episodes, model: WorldModel, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        check_frames(episodes, model.config)
        self._model, self._seed = model, seed
        view, window = _view(episodes), window_of(model.config)
        self._batches = WindowBatches(view, window, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        self._cutter = WindowCutter(view, window)

    @property
    def num_windows(self) -> int:
        """Windows of one pass over the episodes."""
        return self._batches.num_windows

    def batch(self, step: int) -> WorldBatch:
        """Return this rank's windows of a step, on the model's device."""
        return self._to_batch(self._batches.batch(step), step)

    def spread(self, count: int, *, batch: int = 64) -> list[WorldBatch]:
        """Return at most `count` windows at equal distances through all episodes, in batches."""
        anchors = self._cutter.anchors
        chosen = anchors[np.unique(np.linspace(0, len(anchors) - 1, min(count, len(anchors))).astype(np.int64))]
        parts = [chosen[at : at + batch] for at in range(0, len(chosen), batch)]
        return [self._to_batch(self._cutter.cut(rows), index) for index, rows in enumerate(parts) if len(rows) > 1]

    def _to_batch(self, cut: Any, step: int) -> WorldBatch:
        device = self._model.action_mean.device
        frames = torch.from_numpy(np.ascontiguousarray(cut.extras["frames"])).to(device)
        actions = torch.from_numpy(np.asarray(cut.actions, np.float32)).to(device)
        return WorldBatch(frames, self._model.normalise_blocks(actions), step, self._seed)


def encode_rows(model: WorldModel, episodes: Episodes, rows: Array | None = None, *, batch: int = 512) -> Tensor:
    """Return latents (N, D) of the frames of episodes, all or those of the given rows, read a batch at a time.

    Raises:
        InputError: the model is in training mode.
    """
    frames = episodes.array("frames")
    chosen = np.arange(len(frames)) if rows is None else np.asarray(rows)
    parts = [frames[chosen[at : at + batch]] for at in range(0, len(chosen), batch)]
    return torch.cat([model.encode_all(torch.from_numpy(np.array(part))) for part in parts])


def window_of(config: WorldConfig) -> WindowConfig:
    """Return the window that a model trains on: history + 1 frames, a skip apart, all of one episode."""
    horizon = config.frame_skip * config.history
    return WindowConfig(horizon=horizon, anchors="whole", extras=("frames",), stride=config.frame_skip)


def check_frames(episodes: Episodes, config: WorldConfig) -> None:
    """Check that episodes hold what a model reads.

    Raises:
        DataError: the message says which array is missing or does not fit, and what to do.
    """
    frames, actions = episodes.array("frames"), episodes.array("actions")
    size = config.image_size
    if frames.dtype != np.uint8 or frames.shape[1:] != (size, size, 3):
        raise DataError(
            f"{episodes.source}: frames are {frames.dtype} {frames.shape[1:]}; this model reads uint8 "
            f"({size}, {size}, 3). Collect at that size, or set image_size to the data's"
        )
    if actions.ndim != 2 or actions.shape[1] != config.action_dim:
        raise DataError(
            f"{episodes.source}: actions have shape {actions.shape[1:]}; this model takes ({config.action_dim},). "
            "Set action_dim to the data's"
        )


def action_statistics(episodes: Episodes) -> ActionStatistics:
    """Return the statistics of raw actions.

    Loggers write NaN where there is no action: in the first row after a reset or in the last of an episode. There it is
    read as the mean and counted.

    Raises:
        DataError: an action inside an episode is not finite, or none is finite.
    """
    actions = np.asarray(episodes.array("actions"), np.float64)
    good = np.isfinite(actions).all(axis=1)
    edges = np.zeros(len(actions), bool)
    edges[episodes.starts] = edges[episodes.starts + episodes.lengths - 1] = True
    bad = np.flatnonzero(~good & ~(edges & ~np.isinf(actions).any(axis=1)))
    if len(bad) or not good.any():
        row = int(bad[0]) if len(bad) else 0
        episode = int(np.searchsorted(episodes.starts, row, side="right")) - 1
        raise DataError(
            f"{episodes.source}: the action at step {row - int(episodes.starts[episode])} of episode {episode} is not "
            f"finite ({len(bad)} such rows); NaN is allowed in the first and last row of an episode only. Repair or "
            "leave out that episode"
        )
    finite = actions[good]
    std = np.maximum(finite.std(axis=0), 1e-6)
    return ActionStatistics(finite.mean(axis=0), std, finite.min(axis=0), finite.max(axis=0), int((~good).sum()))


def set_statistics(model: WorldModel, statistics: ActionStatistics) -> None:
    """Give a model the statistics of its data's actions."""
    names = ("mean", "std", "low", "high")
    model.set_action_statistics(*(torch.from_numpy(getattr(statistics, name)).float() for name in names))


def without_frames(episodes: Episodes) -> Episodes:
    """Return the episodes with a zero for every frame: enough to see how they split and which windows they hold."""
    rows = np.zeros((episodes.num_steps, 1), np.float32)
    return Episodes(
        {"frames": rows, "actions": rows, "observations": rows},
        starts=episodes.starts,
        lengths=episodes.lengths,
        terminated=episodes.terminated,
        truncated=episodes.truncated,
        finals={"frames": rows[: episodes.num_episodes], "observations": rows[: episodes.num_episodes]}
        if "frames" in episodes.finals
        else {},
        source=episodes.source,
    )


def _view(episodes: Episodes) -> Episodes:
    """Return the episodes with no more than frames and actions, their last frame only where it was stored."""
    rows = np.zeros((episodes.num_steps, 1), np.float32)
    finals: dict[str, Array] = {}
    if "frames" in episodes.finals:
        finals = {"frames": episodes.finals["frames"], "observations": rows[: episodes.num_episodes]}
    return Episodes(
        {"frames": episodes.array("frames"), "actions": episodes.array("actions"), "observations": rows},
        starts=episodes.starts,
        lengths=episodes.lengths,
        terminated=episodes.terminated,
        truncated=episodes.truncated,
        finals=finals,
        source=episodes.source,
    )
