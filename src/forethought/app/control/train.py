"""`forethought control train`: proposal, dynamics and value from logged episodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from forethought.app.arguments import chosen_recipe, parse, say, table
from forethought.app.control.places import environment
from forethought.app.control.spread import Spread, parse_seeds, spread_training
from forethought.control import AgentTraining, preset, train_agent
from forethought.control.training import BASELINES, PRESETS
from forethought.core.errors import ConfigError
from forethought.data.episodes.reading import read_episodes

DEFAULT = "cpu"


@dataclass(frozen=True)
class TrainArguments:
    """Train an agent from logged episodes: action proposal, multi-step dynamics and value, each by itself.

    Data is an .npz or HDF5 file in D4RL's layout, a Minari or LeRobot directory, or what `control collect` made.
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    out: Path
    """The run directory to write."""
    settings: Annotated[AgentTraining, tyro.conf.arg(name="")]
    env: str | None = None
    """The environment that the data is of; its action bounds are taken."""
    max_steps: int | None = None
    """The time limit of the environment, for files that do not mark where it ended an episode."""
    recipe: str = DEFAULT
    """tiny, cpu, patched or paper."""
    steps: int | None = None
    """Training steps of every part; short for the loops' own."""
    baselines: bool = False
    """Train the baselines' models too: one-step dynamics, behaviour cloning, joint diffusion."""
    seeds: str | None = None
    """Seeds with commas between them: train a member for each, OUT/seed-N, in worker processes."""
    workers: int = 2
    """Members trained at a time."""
    backend: Literal["local", "ray"] = "local"
    """Where members are trained: on this machine, or on a Ray cluster."""
    exists: Literal["resume", "refuse", "replace"] = "refuse"
    """What to do when the run directory is already there; members are always gone on with."""
    json: bool = False
    """Print result.json as one last line on standard output."""


def train_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought control train` and return its result.

    Raises:
        InputError: a flag, the data, the environment or the directory cannot be used.
    """
    name, recipe = chosen_recipe(arguments, PRESETS, DEFAULT)
    default = TrainArguments(data=tyro.MISSING, out=tyro.MISSING, settings=recipe, recipe=name)
    given = parse(TrainArguments, arguments, verb="control train", default=default)
    settings = given.settings
    if given.baselines:
        settings = replace(settings, parts=settings.parts + BASELINES)
    if given.steps is not None:
        settings = with_steps(settings, given.steps)
    episodes = read_episodes(given.data, max_steps=given.max_steps)
    low, high = None, None
    if given.env is not None:
        low, high = bounds(given.env, episodes)
    if given.seeds is not None:
        spread = Spread(given.workers, given.backend)
        facts = {"env": given.env, "recipe": f"control.{name}", "max_steps": given.max_steps}
        members = spread_training(given.data, settings, parse_seeds(given.seeds), given.out, spread, **facts)
        say(f"{given.out}:\n{table(_member_rows(members))}", as_json=given.json)
        return members
    result = train_agent(
        episodes,
        settings,
        given.out,
        low=low,
        high=high,
        recipe=f"control.{name}",
        recipe_config=preset(name),
        exists=given.exists,
    )
    say(f"{given.out}:\n{table(_rows(result))}", as_json=given.json)
    return result


def with_steps(settings: AgentTraining, steps: int) -> AgentTraining:
    """Return the settings with so many training steps of every part.

    Raises:
        ConfigError: fewer than one step.
    """
    if steps < 1:
        raise ConfigError(f"--steps {steps}: give at least 1")
    names = ("proposal", "dynamics", "value", "joint", "one_step", "policy")
    parts = {name: getattr(settings, name) for name in names}
    return replace(
        settings, **{name: replace(part, loop=replace(part.loop, steps=steps)) for name, part in parts.items()}
    )


def bounds(env_id: str, episodes: Any) -> tuple[Any, Any]:
    """Return the bounds of an environment's actions, and name it as the data's where that has none.

    Raises:
        ConfigError: the data is of another body than the environment's.
    """
    env = environment(env_id)()
    try:
        shapes = (env.observation_space.shape, env.action_space.shape)
        given = (episodes.observations.shape[1:], episodes.actions.shape[1:])
        if shapes != given:
            raise ConfigError(
                f"{env_id} has observations {shapes[0]} and actions {shapes[1]}, the data {given[0]} and {given[1]}; "
                "give the environment that the data is of"
            )
        # A later `control run` of this agent then knows where it belongs.
        episodes.env_id = episodes.env_id or env_id
        return env.action_space.low, env.action_space.high
    finally:
        env.close()


def _member_rows(result: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {"members": ", ".join(result["members"])}
    for name, title in (("rollout_error", "error at the horizon"), ("value_r2", "r2 of the value")):
        if result[name] is not None:
            rows[title] = f"{result[name]['mean'][-1]:.4f}, standard deviation over seeds {result[name]['std'][-1]:.4f}"
    return rows


def _rows(result: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {"steps of data": result["train_steps"], "behaviour return": result["behaviour_return"]}
    for name, part in result["parts"].items():
        if "rollout_error" in part:
            errors = part["rollout_error"]["model"]
            rows[name] = (
                f"error {errors[0]:.4f} after 1 step, {errors[-1]:.4f} after {len(errors)} (standard deviations)"
            )
        elif "calibration" in part:
            rows[name] = f"r2 {part['calibration']['r2']:.3f} on held-out episodes"
        else:
            rows[name] = f"{part['parameters']:,} parameters"
    for name, places in result["constant"].items():
        rows[f"constant {name}"] = ", ".join(map(str, places)) or None
    return {key: value for key, value in rows.items() if value is not None}
