"""The single verbs of the world room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from forethought.app.arguments import chosen_recipe, parse, say, table
from forethought.app.world.measuring import (
    PROTOCOLS,
    Protocol,
    measure_probe,
    measure_success,
    measure_surprise,
    open_model_and_data,
)
from forethought.app.world.opening import open_frames
from forethought.app.world.pictures import write_gif
from forethought.app.world.recipes import WORLD_RECIPES
from forethought.core.errors import RunExistsError
from forethought.core.progress import track
from forethought.data import save_episodes
from forethought.world import WorldFitConfig, fit_world
from forethought.world.collecting import CollectConfig, collect_episodes
from forethought.world.planning import EvaluationConfig, GoalConfig

DEFAULT_RECIPE = "small"
PLAN = GoalConfig(execute=3, over="min")
PERTURBED = (
    "teleport", "vanish", "duplicate", "freeze", "sign_flip", "delay", "double_speed", "wall_penetration",
    "recolour", "lighting", "camera_shift",
)  # fmt: skip


@dataclass(frozen=True)
class CollectArguments:
    """Collect episodes of a built-in environment from scripted behaviour, with states, actions and frames."""

    out: Annotated[Path, tyro.conf.Positional]
    """The directory to write."""
    settings: Annotated[CollectConfig, tyro.conf.arg(name="")] = field(default_factory=CollectConfig)
    preview: Path | None = None
    """Also write a GIF of the first episode here."""
    replace: bool = False
    """Replace the directory where it exists."""
    json: bool = False
    """Print the result as one last line on standard output."""


@dataclass(frozen=True)
class TrainArguments:
    """Train a world model on episodes with frames and actions: split by episode, train, recalibrate, export."""

    episodes: Annotated[Path, tyro.conf.Positional]
    """Episodes of any format that `forethought` reads: its own, .npz, HDF5, Minari, LeRobot."""
    out: Path
    """The run directory to write."""
    settings: Annotated[WorldFitConfig, tyro.conf.arg(name="")]
    recipe: str = DEFAULT_RECIPE
    """The named config that gives every default: small, tiny, push-t or lewm."""
    steps: int | None = None
    """Optimiser steps; short for --loop.steps."""
    camera: str | None = None
    """The array or LeRobot camera that holds the pictures; needed where there are several."""
    image_size: int | None = None
    """Scale the pictures to this side in pixels."""
    exists: Literal["resume", "refuse", "replace"] = "refuse"
    """What to do when the run directory is already there."""
    fallback: bool = False
    """On resume, pass over a damaged checkpoint and take the one before it."""
    json: bool = False
    """Print result.json as one last line on standard output."""


@dataclass(frozen=True)
class EvaluateArguments:
    """Plan to goal images of held-out episodes and count successes, beside doing nothing and acting at random."""

    model: Annotated[Path, tyro.conf.Positional]
    """A world model, or the run that made it."""
    episodes: Annotated[Path, tyro.conf.Positional]
    """Episodes; of those that the model trained on only the held-out ones give starts and goals."""
    policies: tuple[str, ...] = ("plan",)
    """Ways to act, of: plan, subgoals, inverse."""
    protocol: Protocol = "near"
    """near: goals 25 steps ahead and 50 to get there. far: 100 and 150."""
    pairs: int = 40
    """Pairs of each seed."""
    seeds: int = 3
    """Seeds."""
    keep_trivial: bool = False
    """Keep pairs that are solved at the start, as published; otherwise they are left out and counted."""
    goal: GoalConfig = field(default_factory=lambda: PLAN)
    json: bool = False
    """Print the result as one last line on standard output."""


@dataclass(frozen=True)
class ProbeArguments:
    """Ask what the frozen latents know of the state: ridge and MLP probes under a fixed protocol."""

    model: Annotated[Path, tyro.conf.Positional]
    """A world model, or the run that made it."""
    episodes: Annotated[Path, tyro.conf.Positional]
    """Episodes of a built-in environment; held-out ones are used."""
    json: bool = False
    """Print the result as one last line on standard output."""


@dataclass(frozen=True)
class SurpriseArguments:
    """Calibrate surprise on held-out episodes and measure how well it tells broken physics from changed looks."""

    model: Annotated[Path, tyro.conf.Positional]
    """A world model, or the run that made it."""
    episodes: Annotated[Path, tyro.conf.Positional]
    """Episodes of a built-in environment; held-out ones are used."""
    perturb: tuple[str, ...] = PERTURBED
    """What happens at the event."""
    score: str = "mahalanobis"
    """mahalanobis, mse or log-z."""
    pairs: int = 50
    """Matched pairs of runs."""
    out: Path | None = None
    """Also save the calibrated monitor here."""
    json: bool = False
    """Print the result as one last line on standard output."""


def collect_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought world collect` and return what was collected.

    Raises:
        InputError: a flag or the directory cannot be used.
    """
    given = parse(CollectArguments, arguments, verb="world collect")
    if given.out.exists() and not given.replace:
        raise RunExistsError(f"{given.out} already exists; say --replace, or give another directory")
    with track("collect", given.settings.episodes, unit="episodes") as progress:
        episodes = collect_episodes(given.settings, progress=progress.update)
    save_episodes(episodes, given.out, replace=given.replace)
    result: dict[str, Any] = {
        "kind": "world.collect",
        "environment": given.settings.environment,
        "episodes": episodes.num_episodes,
        "steps": episodes.num_steps,
        "image_size": given.settings.image_size,
        "out": str(given.out),
    }
    if given.preview is not None:
        write_gif(given.preview, episodes.episode(0)["frames"])
        result["preview"] = str(given.preview)
    say(f"{given.out}: {episodes.num_episodes:,} episodes, {episodes.num_steps:,} steps", as_json=given.json)
    return result


def train_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought world train` and return its result.

    Raises:
        InputError: a flag, the episodes or the directory cannot be used.
        TrainingError: the latents collapsed, or the loss is not finite.
    """
    name, recipe = chosen_recipe(arguments, WORLD_RECIPES, DEFAULT_RECIPE)
    default = TrainArguments(episodes=tyro.MISSING, out=tyro.MISSING, settings=recipe, recipe=name)
    given = parse(TrainArguments, arguments, verb="world train", default=default)
    settings = given.settings
    if given.steps is not None:
        settings = replace(settings, loop=replace(settings.loop, steps=given.steps))
    result = fit_world(
        settings,
        open_frames(given.episodes, given.camera, given.image_size),
        given.out,
        recipe=f"world.{name}",
        recipe_config=recipe,
        exists=given.exists,
        fallback=given.fallback,
    )
    say(f"{given.out}:\n{table(fit_rows(result))}", as_json=given.json)
    return result


def evaluate_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought world evaluate` and return the rates.

    Raises:
        InputError: a flag, the model or the episodes cannot be used.
    """
    given = parse(EvaluateArguments, arguments, verb="world evaluate")
    model, parts = open_model_and_data(given.model, given.episodes)
    offset, budget = PROTOCOLS[given.protocol]
    settings = EvaluationConfig(
        offset=offset,
        budget=budget,
        num_pairs=given.pairs,
        num_seeds=given.seeds,
        drop_trivial=not given.keep_trivial,
    )
    result = {"kind": "world.evaluate", **measure_success(model, parts, given.policies, settings, given.goal)}
    say("\n" + table(success_rows(result)), as_json=given.json)
    return result


def probe_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought world probe` and return errors and correlations.

    Raises:
        InputError: a flag, the model or the episodes cannot be used.
    """
    given = parse(ProbeArguments, arguments, verb="world probe")
    model, parts = open_model_and_data(given.model, given.episodes)
    result = {"kind": "world.probe", **measure_probe(model, parts["held_out"])}
    say("\n" + table(probe_rows(result)), as_json=given.json)
    return result


def surprise_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought world surprise` and return the benchmark.

    Raises:
        InputError: a flag, the model or the episodes cannot be used.
    """
    given = parse(SurpriseArguments, arguments, verb="world surprise")
    model, parts = open_model_and_data(given.model, given.episodes)
    with track("surprise", len(given.perturb), unit="perturbations") as progress:
        monitor, figures = measure_surprise(
            model,
            parts,
            given.perturb,
            score=given.score,
            num_pairs=given.pairs,
            progress=lambda done, _total: progress.update(done),
        )
    result = {"kind": "world.surprise", **figures}
    if given.out is not None:
        result["monitor"] = str(monitor.save(given.out, replace=True))
    say("\n" + table(surprise_rows(result)), as_json=given.json)
    return result


def fit_rows(result: Mapping[str, Any]) -> dict[str, object]:
    """Return the figures of a training run that a person wants to see first."""
    rows: dict[str, object] = {
        "parameters": result["parameters"],
        "steps": result["steps"],
        "held-out error": f"{result['validation_loss']:.4f} ({result['copy_ratio']:.2f} of saying nothing moves)",
        "latents": f"spread {result['spread']:.2f}, effective rank {result['effective_rank']:.1f}, "
        f"SIGReg {result['sigreg_over_floor']:.2f} times its floor",
    }
    if result["collapsed"]:
        rows["COLLAPSED"] = result["collapsed"]
    return rows


def success_rows(result: Mapping[str, Any]) -> dict[str, object]:
    """Return success rates as a person reads them."""
    rows: dict[str, object] = {
        name: f"{each['success']:.1%} (95 % {each['success_interval'][0]:.1%} to {each['success_interval'][1]:.1%}), "
        f"at the end {each['final_success']:.1%}, {1000 * each['seconds_per_action']:.1f} ms an action"
        for name, each in result["policies"].items()
    }
    rows["pairs"] = f"{result['pairs']} over {result['seeds']} seeds, {result['offset']} steps apart, budget "
    rows["pairs"] = f"{rows['pairs']}{result['budget']}; {result['trivial_pairs']} of {result['drawn_pairs']} trivial"
    return rows


def probe_rows(result: Mapping[str, Any]) -> dict[str, object]:
    """Return probe figures as a person reads them."""
    return {
        name: f"linear r {each['linear']['r']:.4f}, MSE {each['linear']['mse']:.4f}; "
        f"MLP r {each['mlp']['r']:.4f}, MSE {each['mlp']['mse']:.4f}"
        for name, each in result["quantities"].items()
    }


def surprise_rows(result: Mapping[str, Any]) -> dict[str, object]:
    """Return the benchmark as a person reads it."""
    rows: dict[str, object] = {
        name: f"AUROC {each['auroc']:.3f} (95 % {each['auroc_interval'][0]:.3f} to {each['auroc_interval'][1]:.3f}), "
        f"mean z {each['mean_z']:.1f}, flagged in {each['detected']:.0%} of runs"
        for name, each in result["perturbations"].items()
    }
    low, high = result["false_flag_interval"]
    rows["nominal"] = f"{result['false_flag_rate']:.1%} of frames flagged (95 % {low:.1%} to {high:.1%})"
    rows["nominal"] = f"{rows['nominal']} at alpha {result['alpha']:g}"
    for number, reason in enumerate(result.get("failures", ()), start=1):
        rows[f"FAILS ({number})"] = reason
    return rows
