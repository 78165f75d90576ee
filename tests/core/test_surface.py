"""What an import and a public call leave unchanged (R52)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import forethought
from forethought.core import checkpoint, environment, files, progress, rng
from forethought.core.config import config
from forethought.core.run import Run

PROBE = """
import json, sys
before = set(sys.modules)
import {module}
heavy = ("torch", "scipy", "matplotlib", "safetensors", "tokenizers", "transformers", "rich", "tyro", "jinja2")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""


@pytest.mark.parametrize(
    "module",
    [
        "forethought",
        "forethought.core.run",
        "forethought.core.checkpoint",
        "forethought.core.progress",
        "forethought.core.environment",
    ],
)
def test_an_import_of_the_core_brings_no_heavy_package(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE.format(module=module)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
    assert done.stderr == ""


def test_the_public_face_is_what_it_says() -> None:
    assert sorted(forethought.__all__) == ["__version__", "load"]
    assert all(hasattr(forethought, name) for name in forethought.__all__)


@config
class Settings:
    width: int = 3


def test_public_calls_leave_global_randomness_and_defaults_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = (
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),
        torch.get_default_dtype(),
        torch.get_default_device(),
    )
    with Run.open(tmp_path / "run", config=Settings(), recipe="r") as run:
        run.log({"step": 1})
        run.checkpoints.save(1, {"model": {"w": torch.ones(3)}}, {"position": run.position()})
        latest = run.checkpoints.latest()
        assert isinstance(latest, checkpoint.Checkpoint)
        latest.tensors("model")
        run.write_result({})
    forethought.load(tmp_path / "run")
    environment.environment()
    rng.torch_generator(1, "a")
    rng.generator(1, "a").random()
    files.publish(tmp_path / "thing", {"a": b""})
    with progress.track("x", 1) as bar:
        bar.update(1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.get_default_dtype() == before[2]
    assert torch.get_default_device() == before[3]
