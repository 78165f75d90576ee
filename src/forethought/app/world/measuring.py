"""What the verbs and the demo measure on a trained model, as plain JSON values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import ConfigError, unknown_name
from forethought.core.progress import track
from forethought.data import Episodes, read_episodes, split_by_episode
from forethought.envs import System
from forethought.world import SurpriseMonitor, WorldModel, load_world_model
from forethought.world.collecting import environment_of
from forethought.world.planning import (
    EvaluationConfig,
    GoalConfig,
    GoalPolicy,
    InversePolicy,
    NoOpPolicy,
    Policy,
    RandomPolicy,
    SubgoalGraph,
    SubgoalPolicy,
    SystemArena,
    evaluate_policies,
    fit_inverse,
)
from forethought.world.probe import ProbeConfig, probe
from forethought.world.surprise import (
    BenchmarkConfig,
    Perturbation,
    perturbation,
    psychometric_curve,
    surprise_benchmark,
)

Array = NDArray[Any]
ANGLES = ("block_angle", "shoulder", "wrist")
PLANNED = ("plan", "subgoals", "inverse")
# The published protocol, and the one that a look-ahead of 25 steps cannot solve.
PROTOCOLS: dict[str, tuple[int, int]] = {"near": (25, 50), "far": (100, 150)}
Protocol = Literal["near", "far"]
# Shares of the room's width: a jump of 60 of 224 px, about four radii of success.
TELEPORT = 0.27
DISTANCES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)


def open_model_and_data(model: Path, episodes: Path) -> tuple[WorldModel, dict[str, Episodes]]:
    """Return a model and the parts of episodes: `train` and `held_out` as the model's run split them.

    Episodes that the model did not train on are all held out; `train` is then missing.

    Raises:
        InputError: the model or the episodes cannot be read.
    """
    opened, data = load_world_model(model), read_episodes(episodes)
    facts = opened.facts
    if facts.get("episodes") != data.identity():
        return opened, {"held_out": data}
    share = float(facts["held_out"])
    parts = split_by_episode(data, seed=int(facts["seed"]), fractions={"train": 1.0 - share, "held_out": share})
    return opened, parts


def build_policies(
    names: tuple[str, ...], model: WorldModel, train: Episodes | None, system: System, goal: GoalConfig
) -> dict[str, Policy]:
    """Return the named ways to plan, and always the two baselines: doing nothing and acting at random.

    Raises:
        ConfigError: a name is unknown, or needs the training episodes and they are not at hand.
    """
    built: dict[str, Policy] = {}
    for name in names:
        if name not in PLANNED:
            raise unknown_name("way to plan", name, PLANNED)
        if name == "plan":
            built[name] = GoalPolicy(model, goal)
            continue
        if train is None:
            raise ConfigError(f"{name} learns from the model's training episodes; give those that it was trained on")
        if name == "subgoals":
            built[name] = SubgoalPolicy(model, SubgoalGraph(model, train), goal)
        else:
            built[name] = InversePolicy(model, fit_inverse(model, train))
    low, high = np.asarray(system.action_low), np.asarray(system.action_high)
    return built | {"no-op": NoOpPolicy(np.clip(np.zeros(len(low)), low, high)), "random": RandomPolicy(low, high)}


def measure_success(
    model: WorldModel,
    parts: Mapping[str, Episodes],
    names: tuple[str, ...],
    settings: EvaluationConfig,
    goal: GoalConfig,
) -> dict[str, Any]:
    """Return success rates on held-out pairs.

    Raises:
        InputError: as evaluate_policies and build_policies.
    """
    held_out = parts["held_out"]
    system = environment_of(held_out)
    policies = build_policies(names, model, parts.get("train"), system, goal)
    arena = SystemArena(system, model.config.image_size)
    with track("evaluate", settings.num_seeds * len(policies), unit="runs") as progress:
        return evaluate_policies(
            policies, held_out, arena, settings, progress=lambda done, _total: progress.update(done)
        )


def measure_probe(model: WorldModel, episodes: Episodes, settings: ProbeConfig | None = None) -> dict[str, Any]:
    """Return what the latents know of every number of the state, and of all of them together.

    Angles are asked for as sine and cosine: latents of equal pictures cannot differ by a full turn.
    """
    states = np.asarray(episodes.observations, np.float64)
    names = environment_of(episodes).state_names
    named: dict[str, Array] = {}
    for index, name in enumerate(names):
        if states[:, index].std() > 1e-9:
            turns = np.stack([np.sin(states[:, index]), np.cos(states[:, index])], axis=1)
            named[name] = turns if name in ANGLES else states[:, index : index + 1]
    return probe(model, episodes, {"state": np.concatenate(list(named.values()), axis=1), **named}, settings)


def measure_surprise(
    model: WorldModel,
    parts: Mapping[str, Episodes],
    names: tuple[str, ...],
    *,
    score: str = "mahalanobis",
    num_pairs: int = 50,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SurpriseMonitor, dict[str, Any]]:
    """Return a monitor calibrated on one half of the held-out episodes, and the benchmark on the other half.

    Raises:
        InputError: there are too few held-out episodes, or a perturbation is unknown.
    """
    held_out = parts["held_out"]
    halves = split_by_episode(held_out, seed=0, fractions={"calibrate": 0.6, "judge": 0.4})
    monitor = SurpriseMonitor(model, score)
    monitor.calibrate(halves["calibrate"])
    system = environment_of(held_out)
    arena = SystemArena(system, model.config.image_size)
    settings = benchmark_settings(system, int(halves["judge"].lengths.max()), num_pairs)
    span = settings.high - settings.low
    chosen: list[Perturbation] = [
        perturbation(name, distance=TELEPORT * span) if name == "teleport" else perturbation(name) for name in names
    ]
    figures = surprise_benchmark(monitor, arena, halves["judge"], chosen, settings, progress=progress)
    distances = [share * span for share in DISTANCES]
    figures["psychometric"] = psychometric_curve(monitor, arena, halves["judge"], distances, settings)
    return monitor, figures


def benchmark_settings(system: System, longest: int, num_pairs: int) -> BenchmarkConfig:
    """Return where a system's first two numbers, a position, may be moved, and when."""
    length = min(50, longest)
    span = system.state_high[0] - system.state_low[0]
    margin = 0.1 * span
    return BenchmarkConfig(
        num_pairs=num_pairs,
        length=length,
        event=length * 3 // 5,
        low=system.state_low[0] + margin,
        high=system.state_high[0] - margin,
    )


def plain(values: Any) -> Any:
    """Return values as JSON keeps them."""
    return json.loads(json.dumps(values))
