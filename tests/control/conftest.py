"""Models of the double integrator, trained once for all tests of this room."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.control import Agent, AgentConfig, Data, body_of, fit_part, preset
from tests.control.integrator import episodes, towards


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data() -> Data:
    return Data(episodes(150, seed=0), episodes(20, seed=1), discount=0.85)


@pytest.fixture(scope="session")
def train_part(data: Data, tmp_path_factory: pytest.TempPathFactory):
    """Train a part of the double integrator by its name, with the tiny preset."""

    def train(part: str, steps: int = 500, out: Path | None = None, exists: Any = "refuse") -> Any:
        settings = preset("tiny").of(part)
        settings = replace(settings, loop=replace(settings.loop, steps=steps))
        place = tmp_path_factory.mktemp("control") / "run" if out is None else out
        return fit_part(part, settings, data, body_of(data.train), place, exists=exists)

    return train


@pytest.fixture(scope="session")
def models(train_part) -> dict[str, Any]:
    parts = ("proposal.diffusion", "dynamics.diffusion", "value.regression", "dynamics.one-step")
    return {part: train_part(part) for part in parts}


@pytest.fixture
def agent(models) -> Agent:
    return Agent(
        models["proposal.diffusion"],
        models["dynamics.diffusion"],
        models["value.regression"],
        objective=towards(1.0),
        settings=AgentConfig(execute=2),
    )
