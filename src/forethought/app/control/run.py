"""`forethought control run` and `collect`: an agent, or any policy, in an environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from forethought.app.arguments import parse, say, table
from forethought.app.control.places import agent_at, environment, policy_at
from forethought.control import Agent, AgentConfig
from forethought.control.running import ExploreConfig, collect, evaluate, write_csv
from forethought.control.running.report import write_film
from forethought.core import files
from forethought.core.artefact import resolve
from forethought.core.errors import ConfigError


@dataclass(frozen=True)
class RunArguments:
    """Run an agent (or a distilled policy) in an environment and report returns with their uncertainty."""

    agent: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """What `control train` or `control distil` made, or the word random."""
    env: str
    """A Gymnasium environment, for example Hopper-v5."""
    episodes: int = 20
    """Episodes for each seed."""
    seeds: str = "0"
    """Seeds, with commas between them."""
    changes: tuple[str, ...] = ()
    """Changes of the body: actuator:INDEX:LOW:HIGH, gain:G, mass:F, friction:F, delay:N."""
    dynamics: Path | None = None
    """Other dynamics than the agent's own, as `control adapt` makes them."""
    samples: int | None = None
    """Candidates of a plan; 1 is Diffusion Policy."""
    execute: int | None = None
    """Actions of a plan executed before the next plan."""
    budget_ms: float | None = None
    """Time for a plan; denoising steps and candidates are lowered to keep it."""
    robots: int = 8
    """Episodes run at a time, planned for in one batch."""
    out: Path | None = None
    """A directory for result.json, episodes.csv and videos."""
    film: int = 0
    """Episodes of the first seed to film (needs --out)."""
    json: bool = False
    """Print the result as one last line on standard output."""


def run_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought control run` and return its result.

    Raises:
        InputError: a flag, the agent or the environment cannot be used.
    """
    given = parse(RunArguments, arguments, verb="control run")
    seeds = parse_seeds(given.seeds)
    if given.film and given.out is None:
        raise ConfigError("--film needs --out, a directory for the videos")
    make = environment(given.env, given.changes, render=given.film > 0)
    if given.out is not None:
        files.make_directory(given.out)
    agents: list[Agent] = []
    result = evaluate(
        make,
        _maker(given, make, agents),
        episodes=given.episodes,
        seeds=seeds,
        env_id=given.env,
        film=given.film,
        on_film=None if given.out is None else _film_to(given.out),
    )
    result |= {"agent": given.agent, "seeds": seeds, "changes": list(given.changes)}
    result["num_plans"] = sum(agent.planner.budget.num_plans for agent in agents)
    result["late_plans"] = sum(agent.planner.budget.num_misses for agent in agents)
    result["faults"] = sum(agent.num_faults for agent in agents)
    if given.out is not None:
        write_csv(result["per_episode"], given.out / "episodes.csv")
        files.write_json(given.out / "result.json", result)
    say(table(_rows(result)), as_json=given.json)
    return result


@dataclass(frozen=True)
class CollectArguments:
    """Collect episodes in an environment; interrupted, the same command goes on."""

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    env: str
    """A Gymnasium environment, for example Walker2d-v5."""
    policy: str = "random"
    """random, the directory of an agent or of a distilled policy, or a .zip of stable-baselines3."""
    episodes: int = 100
    changes: tuple[str, ...] = ()
    """Changes of the body: actuator:INDEX:LOW:HIGH, gain:G, mass:F, friction:F, delay:N."""
    noise: float = 0.0
    """Standard deviation of noise on every action, in half ranges."""
    uniform: float = 0.0
    """Share of steps with a uniformly random action."""
    seed: int = 0
    robots: int = 8
    """Episodes run at a time."""
    json: bool = False
    """Print the result as one last line on standard output."""


def collect_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought control collect` and return what was collected.

    Raises:
        InputError: a flag, the policy, the environment or the directory cannot be used.
    """
    given = parse(CollectArguments, arguments, verb="control collect")
    make = environment(given.env, given.changes)
    robots = max(1, min(given.robots, given.episodes))
    policy = policy_at(given.policy, make, seed=given.seed, num_robots=robots, options={})
    episodes = collect(
        make,
        policy,
        given.out,
        episodes=given.episodes,
        explore=ExploreConfig(noise=given.noise, uniform=given.uniform),
        seed=given.seed,
        env_id=given.env,
        settings={"policy": given.policy, "changes": list(given.changes), "robots": robots},
    )
    result = {
        "out": str(given.out),
        "episodes": episodes.num_episodes,
        "steps": episodes.num_steps,
        "return_mean": float(episodes.returns.mean()),
        "terminated_share": float(episodes.terminated.mean()),
    }
    say(table(result), as_json=given.json)
    return result


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


def _maker(given: RunArguments, make: Callable[[], Any], agents: list[Agent]) -> Callable[[int], Any]:
    robots = max(1, min(given.robots, given.episodes))

    def policy(seed: int) -> Any:
        options = _options(given, seed) if _is_agent(given.agent) else {}
        made = policy_at(given.agent, make, seed=seed, num_robots=robots, options=options)
        if isinstance(made, Agent):
            if given.dynamics is not None:
                made.swap_dynamics(resolve(given.dynamics)[1])
            agents.append(made)
        return made

    return policy


def _is_agent(given: str) -> bool:
    return given != "random" and not given.endswith(".zip") and resolve(Path(given))[0] == "control-agent"


def _options(given: RunArguments, seed: int) -> dict[str, Any]:
    """Return the settings of the saved agent with what the flags change."""
    settings: AgentConfig = agent_at(Path(given.agent)).settings
    wanted = {"num_samples": given.samples, "budget_ms": given.budget_ms}
    changed = {name: value for name, value in wanted.items() if value is not None}
    if given.samples == 1:
        changed["warm_start"] = False  # one candidate, and no second one to choose from
    execute = settings.execute if given.execute is None else given.execute
    return {"settings": replace(settings, planner=replace(settings.planner, **changed), execute=execute, seed=seed)}


def _film_to(out: Path) -> Callable[[int, Any], None]:
    return lambda seed, finished: write_film(finished, out / f"seed-{seed}-episode-{finished.number}.gif")


def _rows(result: dict[str, Any]) -> dict[str, Any]:
    interval = result["return_interval"]
    spread = "" if interval is None else f" (95 % interval over episodes {interval[0]:.1f} to {interval[1]:.1f})"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    rows: dict[str, Any] = {
        "episodes": f"{result['episodes']} in {result['env_id']} ({versions})",
        "return": f"{result['return_mean']:.1f}{spread}",
        "steps an episode": result["length_mean"],
    }
    if "score" in result:
        rows["score"] = f"{result['score']:.1f} (0 random, 100 expert of D4RL)"
    if result["num_plans"]:
        rows["plans"] = f"{result['num_plans']}, {result['late_plans']} late, {result['faults']} faults"
    return rows
