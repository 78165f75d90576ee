"""Tasks for the fan-out: a real small training run, and runs that fail in chosen ways."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from small_training import Rows, Tiny, loss

from forethought.core.config import config, from_dict
from forethought.core.errors import ConfigError
from forethought.core.run import Run
from forethought.train import LoopConfig, OptimiserConfig, build_optimisers, train
from forethought.train.parallel import Parallel, open_parallel


@config
class Fit:
    """A training run of 6 steps that pauses, or kills itself once at a step."""

    name: str = "fit"
    steps: int = 6
    pause: float = 0.0
    die_at: int | None = None


def fit(directory: Path, settings: dict[str, Any]) -> None:
    """Train the tiny model, from its newest checkpoint where there is one."""
    chosen = from_dict(Fit, settings)
    with (
        open_parallel("none") as parallel,
        Run.open(directory, config=chosen, recipe="fit", exists="resume") as run,
    ):
        resumed_at = max(run.checkpoints.steps(), default=0)
        _fit(chosen, directory, run, parallel)
        run.write_result({"resumed_at": resumed_at, "threads": int(os.environ["OMP_NUM_THREADS"])})


def _fit(chosen: Fit, directory: Path, run: Run, parallel: Parallel) -> None:
    module = Tiny()
    for record in train(
        module,
        loss=loss,
        batches=Rows(parallel),
        optimisers=build_optimisers(module, OptimiserConfig(lr=3e-2)),
        run=run,
        settings=LoopConfig(steps=chosen.steps, checkpoint_every=2, ema_decay=0.8),
        seed=1,
        parallel=parallel,
    ):
        time.sleep(chosen.pause)
        if record.step == chosen.die_at and not (directory / "died").exists():
            (directory / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)


def fail(directory: Path, settings: dict[str, Any]) -> None:
    """End in the way that the settings say."""
    directory.mkdir(exist_ok=True)
    print(f"this is {settings['how']}")
    if settings["how"] == "input":
        raise ConfigError("the answer may not be 41; give 42")
    if settings["how"] == "crash":
        raise ZeroDivisionError("a mistake in the code")
    if settings["how"] == "no result":
        return
    (directory / "result.json").write_text("{}")


def linger(directory: Path, settings: dict[str, Any]) -> None:
    """Note this process and a child of it, then stay until killed; the third attempt ends at once."""
    directory.mkdir(exist_ok=True)
    attempts = len(list(directory.glob("attempt-*")))
    if attempts < 2:
        child = subprocess.Popen(["sleep", "600"])
        staging = directory / "staging"
        staging.write_text(f"{os.getpid()} {child.pid}")
        staging.rename(directory / f"attempt-{attempts}")
        time.sleep(600)
    (directory / "result.json").write_text("{}")
