"""What `control run` leaves behind: a run directory with figures, episodes as CSV, films and a page."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from forethought.app.report import write_report
from forethought.control.running import Finished, write_csv
from forethought.control.running.report import write_film
from forethought.core import files
from forethought.core.config import config
from forethought.core.errors import ConfigError, InputError
from forethought.core.extras import require
from forethought.core.run import RESULT, Exists, Run

CSV = "episodes.csv"


@config
class RunRecord:
    """What was run: the arguments of `control run` that change its figures."""

    agent: str
    env: str
    episodes: int
    seeds: str
    method: str = "dmpc"
    changes: tuple[str, ...] = ()
    dynamics: str | None = None
    samples: int | None = None
    execute: int | None = None
    budget_ms: float | None = None
    robots: int = 8
    film: int = 0
    monitor: str | None = None


def plain(arguments: Any) -> dict[str, Any]:
    """Return the arguments of `control run` that change its figures, as plain JSON."""
    given = asdict(arguments)
    values = {name: given[name] for name in RunRecord.__dataclass_fields__}
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


@contextmanager
def recorded(arguments: Any, *, exists: Exists) -> Generator[Path]:
    """Open the run directory that the arguments ask for and give it; without one, a directory that is not used.

    Raises:
        RunExistsError: the directory exists and may not be used.
    """
    if arguments.out is None:
        yield Path()
        return
    values = plain(arguments)
    record = RunRecord(**{**values, "changes": tuple(values["changes"])})
    with Run.open(arguments.out, config=record, recipe="control.run", exists=exists) as run:
        try:
            yield run.directory
        except InputError:
            run.discard()
            raise


def check_drawing(make: Callable[[], Any], env_id: str) -> None:
    """Draw one frame, so that what is missing for films is told before anything ran.

    Raises:
        ConfigError: the environment cannot draw here.
    """
    gymnasium: Any = require("gymnasium", extra="control", purpose="filming an environment")
    env = make()
    try:
        env.reset(seed=0)
        frame = np.asarray(env.render())
        if frame.ndim != 3:
            raise ConfigError(f"{env_id} draws no pictures ({frame.shape}); leave --film out")
    # What is not installed, or no way to draw without a display; simulators raise their own kinds of both.
    except (gymnasium.error.Error, ImportError, RuntimeError, AttributeError, OSError, LookupError) as error:
        raise ConfigError(f"{env_id} cannot be drawn: {error}; install what it needs, or leave --film out") from error
    finally:
        env.close()


def publish(result: Mapping[str, Any], folder: Path) -> None:
    """Write episodes.csv, result.json and report.html.

    Raises:
        StorageError: the disk refused.
    """
    write_csv(result["per_episode"], folder / CSV)
    files.write_json(folder / RESULT, dict(result))
    write_report(folder)


class Films:
    """Writes each filmed episode as it ends."""

    def __init__(self, out: Path | None) -> None:
        self.out = out
        self._written: list[str] = []

    def __call__(self, seed: int, finished: Finished) -> None:
        """Take in a filmed episode."""
        if self.out is not None:
            name = f"seed-{seed}-episode-{finished.number}.gif"
            write_film(finished, self.out / name)
            self._written.append(name)

    def found(self) -> dict[str, Any]:
        """Return the names of the films, where there are any."""
        return {"films": self._written} if self._written else {}
