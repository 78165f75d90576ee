"""Returns of a policy with their uncertainty: per episode, per seed, normalised beside what they were measured on."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forethought.control.running.episodes import Finished, run_episodes
from forethought.control.running.known import known
from forethought.control.running.policies import Policy
from forethought.core import files
from forethought.core.errors import ConfigError
from forethought.core.extras import require
from forethought.core.progress import track
from forethought.stats import mean_interval

FIELDS = ("seed", "episode", "return", "steps", "terminated")


def evaluate(
    make: Callable[[], Any],
    make_policy: Callable[[int], Policy],
    *,
    episodes: int,
    seeds: Sequence[int],
    env_id: str | None = None,
    film: int = 0,
    on_film: Callable[[int, Finished], None] | None = None,
) -> dict[str, Any]:
    """Run `episodes` episodes for each seed and return figures as plain JSON; `make_policy(seed)` builds the policy.

    Raises:
        ConfigError: no seeds or episodes are given, or a seed twice.
    """
    if not seeds or len(set(seeds)) != len(seeds) or episodes < 1:
        raise ConfigError(f"seeds {list(seeds)} and {episodes} episodes: give at least one of each, and no seed twice")
    rows: list[dict[str, Any]] = []
    seconds, steps = 0.0, 0
    with track("run", episodes * len(seeds), unit="episodes") as bar:
        for seed in seeds:
            policy, began = make_policy(seed), time.perf_counter()
            for finished in run_episodes(make, policy, episodes, seed=seed, film=film if seed == seeds[0] else 0):
                rows.append(_row(seed, finished))
                if finished.frames and on_film is not None:
                    on_film(seed, finished)
                bar.update(len(rows), mean=float(np.mean([row["return"] for row in rows])))
                steps += len(finished.actions)
            seconds += time.perf_counter() - began
    rows.sort(key=lambda row: (row["seed"], row["episode"]))
    return {**summary(rows, env_id), "steps_per_second": steps / max(seconds, 1e-9), "per_episode": rows}


def summary(rows: Sequence[dict[str, Any]], env_id: str | None) -> dict[str, Any]:
    """Return mean return with its 95 % interval over episodes, the mean of each seed, and the normalised score.

    Episodes under one seed share the models but not the start, so the interval speaks of starts, not of trainings.
    """
    returns = [row["return"] for row in rows]
    seeds = sorted({row["seed"] for row in rows})
    by_seed = {str(seed): float(np.mean([row["return"] for row in rows if row["seed"] == seed])) for seed in seeds}
    figures: dict[str, Any] = {
        "episodes": len(rows),
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "return_interval": _interval(returns),
        "return_by_seed": by_seed,
        "length_mean": float(np.mean([row["steps"] for row in rows])),
        "terminated_share": float(np.mean([row["terminated"] for row in rows])),
        "env_id": env_id,
        "versions": _versions(),
    }
    reference = known(env_id)
    if reference is not None:
        figures["score"] = reference.score(figures["return_mean"])
        interval = figures["return_interval"]
        figures["score_interval"] = None if interval is None else [reference.score(bound) for bound in interval]
    return figures


def write_csv(rows: Sequence[dict[str, Any]], path: Path | str) -> None:
    """Write one line an episode.

    Raises:
        StorageError: the disk refused.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: row[name] for name in FIELDS} for row in rows)
    files.replace_file(path, text.getvalue().encode())


def write_film(finished: Finished, path: Path | str, *, fps: int = 25) -> None:
    """Write an episode's kept frames as an animated GIF or MP4, by the ending of the name.

    Raises:
        MissingExtraError: imageio is not installed.
    """
    imageio: Any = require("imageio.v3", extra="control", purpose="writing a video")
    frames = np.stack(finished.frames)
    if str(path).endswith(".gif"):
        imageio.imwrite(path, frames, duration=1000.0 / fps, loop=0)
    else:
        imageio.imwrite(path, frames, fps=fps)


def _row(seed: int, finished: Finished) -> dict[str, Any]:
    return {
        "seed": seed,
        "episode": finished.number,
        "return": finished.total,
        "steps": len(finished.actions),
        "terminated": finished.terminated,
    }


def _interval(returns: Sequence[float]) -> list[float] | None:
    if len(returns) < 2:
        return None
    interval = mean_interval(returns)
    return [interval.low, interval.high]


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for package in ("gymnasium", "mujoco"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
