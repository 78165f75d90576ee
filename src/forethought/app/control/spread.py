"""Rollouts and trainings spread over worker processes or a Ray cluster: one task a seed, the same results anywhere.

A task is what one process would do for its seed: the same function, the same seeds, one thread. So the figures are
equal wherever it ran, and an interrupted call goes on with the seeds that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from forethought.app.control.places import environment
from forethought.control import AgentTraining, train_agent
from forethought.control.running.report import summary
from forethought.core import files
from forethought.core.config import from_dict, to_dict
from forethought.core.errors import ConfigError
from forethought.core.run import RESULT
from forethought.data.episodes.reading import read_episodes
from forethought.train.fanout import fan_out

Backend = Literal["local", "ray"]
_SUMS = ("num_plans", "late_plans", "faults")


@dataclass(frozen=True)
class Spread:
    """Where tasks run: how many at a time, and over what."""

    workers: int = 2
    backend: Backend = "local"

    def over(self, task: str, settings: Sequence[Mapping[str, Any]], root: Path) -> list[dict[str, Any]]:
        """Run a task of this module for each of the settings and return their results in order.

        Raises:
            ConfigError: the number of workers is not positive.
            TaskError: a task failed; the message names its log.
        """
        if self.workers < 1:
            raise ConfigError(f"--workers {self.workers}: give at least 1, or leave it out to stay in this process")
        places = fan_out(
            f"{__name__}:{task}",
            settings,
            root=root,
            workers=self.workers,
            backend=self.backend,
            threads_per_worker=1,
        )
        return [files.read_json(place / RESULT, what="result of a task") for place in places]


def spread_rollouts(arguments: Mapping[str, Any], seeds: Sequence[int], root: Path, spread: Spread) -> dict[str, Any]:
    """Run an agent for each seed in a task of its own and return the figures of all episodes together.

    `arguments` are those of `control run`, as plain JSON.

    Raises:
        TaskError: a task failed; the message names its log.
    """
    # A task may run where the working directory is another one.
    places = {name: arguments[name] for name in ("agent", "dynamics", "monitor") if arguments[name] is not None}
    found = {name: str(Path(place).absolute()) for name, place in places.items() if Path(place).exists()}
    arguments = {**arguments, **found}
    # As in one process, only the first seed is filmed and watched.
    rest = {**arguments, "film": 0, "monitor": None}
    settings = [
        {**(arguments if seed == seeds[0] else rest), "seeds": str(seed), "name": f"seed-{seed}"} for seed in seeds
    ]
    results = spread.over("rollout_task", settings, root)
    rows = sorted(
        (row for result in results for row in result["per_episode"]), key=lambda row: (row["seed"], row["episode"])
    )
    sums = {name: sum(result[name] for result in results) for name in _SUMS}
    shown = {name: results[0][name] for name in ("monitor",) if name in results[0]}
    if "films" in results[0]:
        shown["films"] = [f"{root.name}/{settings[0]['name']}/{film}" for film in results[0]["films"]]
    return {**summary(rows, results[0]["env_id"]), **sums, **shown, "per_episode": rows}


def rollout_task(directory: Path, settings: dict[str, Any]) -> None:
    """Run the episodes of one seed and leave their figures in result.json.

    Raises:
        InputError: the agent or the environment cannot be used.
    """
    from forethought.app.control.run import RunArguments, measure

    settings.pop("name")
    files.make_directory(directory)
    places = {name: None if settings[name] is None else Path(settings[name]) for name in ("dynamics", "monitor")}
    given = RunArguments(**{**settings, **places, "changes": tuple(settings["changes"]), "out": directory})
    result = measure(given, parse_seeds(given.seeds))
    # How long it took is of the machine; everything else is equal wherever it ran.
    result.pop("steps_per_second", None)
    files.write_json(directory / RESULT, result)


def spread_training(
    data: Path, settings: AgentTraining, seeds: Sequence[int], out: Path, spread: Spread, **facts: Any
) -> dict[str, Any]:
    """Train an agent for each seed in a task of its own, OUT/seed-N, and return what they have in common.

    Raises:
        TaskError: a task failed; the message names its log.
    """
    tasks = [
        {
            "name": f"seed-{seed}",
            "data": str(data.absolute()),
            "training": to_dict(replace(settings, seed=seed)),
            "env": facts.get("env"),
            "recipe": facts.get("recipe") or "custom",
            "max_steps": facts.get("max_steps"),
        }
        for seed in seeds
    ]
    results = spread.over("training_task", tasks, out)
    return {
        "kind": "control.ensemble",
        "seeds": list(seeds),
        "members": [str(out / task["name"]) for task in tasks],
        "fingerprints": [{name: part["fingerprint"] for name, part in r["parts"].items()} for r in results],
        "rollout_error": _spread_of(results, lambda parts: parts["dynamics.diffusion"]["rollout_error"]["model"]),
        "value_r2": _spread_of(results, _value_r2),
    }


def _value_r2(parts: dict[str, Any]) -> list[float]:
    return [figures["calibration"]["r2"] for name, figures in parts.items() if name.startswith("value.")]


def training_task(directory: Path, settings: dict[str, Any]) -> None:
    """Train one member in its run directory, which holds its result.json.

    Raises:
        InputError: the data or the environment cannot be used.
        TrainingError: the loss is no longer finite.
    """
    from forethought.app.control.train import bounds

    episodes = read_episodes(Path(settings["data"]), max_steps=settings["max_steps"])
    low, high = (None, None) if settings["env"] is None else bounds(settings["env"], episodes)
    training = from_dict(AgentTraining, settings["training"], source="the task's settings")
    train_agent(episodes, training, directory, low=low, high=high, recipe=settings["recipe"], exists="resume")


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a text such as 0,1,2.

    Raises:
        ConfigError: it is none.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds {text!r}: give whole numbers with commas between them, such as 0,1,2") from error
    if min(seeds) < 0:
        raise ConfigError(f"--seeds {text!r}: seeds count from 0")
    return seeds


def check_environment(env_id: str) -> None:
    """Build an environment once, so that a wrong name is told here and not in the log of a task.

    Raises:
        ConfigError: there is no such environment, or what it needs is not installed.
    """
    environment(env_id)().close()


def _spread_of(results: Sequence[Mapping[str, Any]], read: Callable[[Any], Sequence[float]]) -> dict[str, Any] | None:
    """Return mean and standard deviation over members of figures that all of them have, or None."""
    try:
        values = np.array([read(result["parts"]) for result in results])
    except KeyError:
        return None
    spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])
    return {"mean": values.mean(0).tolist(), "std": spread.tolist()}
