"""One small trained model for all tests of the room, and the world of dots as an arena."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from forethought.data import Episodes
from forethought.train import LoopConfig, ScheduleConfig
from forethought.world import WorldFitConfig, WorldModel, fit_world, load_world_model, preset
from forethought.world.config import AlarmConfig, RegulariserConfig
from tests.world.dots import dot_episodes, draw, move


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def settings(steps: int = 150, **changes: Any) -> WorldFitConfig:
    values: dict[str, Any] = {
        "model": preset("tiny"),
        "batch_size": 32,
        "calibration_windows": 128,
        "evaluation_windows": 128,
        "regulariser": RegulariserConfig(num_projections=128),
        "alarm": AlarmConfig(),
        "loop": LoopConfig(
            steps=steps, evaluate_every=50, checkpoint_every=50, schedule=ScheduleConfig(warmup=min(0.3, 25 / steps))
        ),
    }
    return WorldFitConfig(**(values | changes))


class Dots:
    """The world of dots, in lock-step."""

    def __init__(self) -> None:
        self._states: NDArray[np.float64] = np.zeros((1, 2))

    def reset(self, states_BS: NDArray[Any]) -> None:
        self._states = np.array(states_BS, np.float64)

    def frames(self) -> NDArray[np.uint8]:
        return draw(self._states)

    def states(self) -> NDArray[np.float64]:
        return self._states.copy()

    def step(self, actions_BA: NDArray[Any]) -> None:
        self._states = move(self._states, np.asarray(actions_BA, np.float64))

    def reached(self, states_BS: NDArray[Any], goals_BS: NDArray[Any]) -> NDArray[np.bool_]:
        return np.linalg.norm(np.asarray(states_BS) - np.asarray(goals_BS), axis=1) < 0.08


@pytest.fixture(scope="session")
def episodes() -> Episodes:
    return dot_episodes(60, 60)


@pytest.fixture(scope="session")
def trained_run(episodes: Episodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("world") / "run"
    fit_world(settings(250), episodes, out)
    return out


@pytest.fixture(scope="session")
def trained(trained_run: Path) -> WorldModel:
    return load_world_model(trained_run)
