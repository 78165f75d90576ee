"""`forethought control run` and `collect`: an agent, or any policy, in an environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from forethought.app.arguments import parse, say, table
from forethought.app.control.places import agent_at, environment, method_at, policy_at
from forethought.app.control.results import Films, check_drawing, plain, publish, recorded
from forethought.app.control.spread import Spread, check_environment, parse_seeds, spread_rollouts
from forethought.control import Agent, AgentConfig, Monitor
from forethought.control.adaptation import Watched
from forethought.control.running import ExploreConfig, collect, evaluate
from forethought.core.artefact import resolve
from forethought.core.errors import ConfigError
from forethought.data.episodes.reading import read_episodes


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
    method: str = "dmpc"
    """dmpc, or of the models that `control train --baselines` made: one-step, mbop, joint, proposal, cloned."""
    samples: int | None = None
    """Candidates of a plan; 1 is Diffusion Policy."""
    execute: int | None = None
    """Actions of a plan executed before the next plan."""
    budget_ms: float | None = None
    """Time for a plan; denoising steps and candidates are lowered to keep it."""
    robots: int = 8
    """Episodes run at a time, planned for in one batch."""
    out: Path | None = None
    """A run directory for result.json, episodes.csv, report.html and videos."""
    exists: Literal["resume", "refuse", "replace"] = "refuse"
    """What to do when the run directory is already there."""
    film: int = 0
    """Episodes of each seed to film (needs --out)."""
    monitor: Path | None = None
    """Nominal episodes of the agent to calibrate a monitor on, whose alarm is the wish to adapt."""
    workers: int | None = None
    """Run the seeds in so many worker processes at a time (needs --out); left out: in this process."""
    backend: Literal["local", "ray"] = "local"
    """Where workers run: on this machine, or on a Ray cluster."""
    json: bool = False
    """Print the result as one last line on standard output."""


def run_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought control run` and return its result.

    Raises:
        InputError: a flag, the agent or the environment cannot be used.
    """
    given = parse(RunArguments, arguments, verb="control run")
    seeds = parse_seeds(given.seeds)
    if (given.film or given.workers is not None) and given.out is None:
        raise ConfigError("--film and --workers need --out, a directory for videos and results")
    if given.film:
        check_drawing(environment(given.env, given.changes, render=True), given.env)
    with recorded(given, exists=given.exists) as folder:
        if given.workers is None:
            result = measure(given, seeds)
        else:
            check_environment(given.env)
            result = spread_rollouts(plain(given), seeds, folder / "seeds", Spread(given.workers, given.backend))
        result |= {
            "kind": "control.run",
            "agent": given.agent,
            "method": given.method,
            "seeds": seeds,
            "changes": list(given.changes),
        }
        if given.out is not None:
            publish(result, folder)
    say(table(_rows(result)), as_json=given.json)
    return result


def measure(given: RunArguments, seeds: list[int]) -> dict[str, Any]:
    """Run the episodes of some seeds in this process and return their figures, films left in the directory.

    Raises:
        InputError: the agent, the environment or the nominal episodes cannot be used.
    """
    make = environment(given.env, given.changes, render=given.film > 0)
    films = Films(given.out)
    policies = _Policies(given, make)
    result = evaluate(
        make,
        policies,
        episodes=given.episodes,
        seeds=seeds,
        env_id=given.env,
        film=given.film,
        on_film=None if given.out is None else films,
    )
    agents = policies.agents
    result["num_plans"] = sum(agent.planner.budget.num_plans for agent in agents)
    result["late_plans"] = sum(agent.planner.budget.num_misses for agent in agents)
    result["faults"] = sum(agent.num_faults for agent in agents)
    return result | films.found() | policies.watch()


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


class _Policies:
    """Makes the policy of each seed, and keeps the agents and the first seed's monitor for what is told afterwards."""

    def __init__(self, given: RunArguments, make: Callable[[], Any]) -> None:
        self.given, self.make = given, make
        self.agents: list[Agent] = []
        self._watched: Watched | None = None

    def __call__(self, seed: int) -> Any:
        given = self.given
        robots = max(1, min(given.robots, given.episodes))
        options = _options(given, seed) if _is_agent(given.agent) else {}
        if given.method == "dmpc":
            made = policy_at(given.agent, self.make, seed=seed, num_robots=robots, options=options)
        else:
            _check_method(given)
            made = method_at(Path(given.agent), given.method, self.make, num_robots=robots, options=options)
        if given.monitor is not None and (not isinstance(made, Agent) or given.method not in ("dmpc", "one-step")):
            raise ConfigError("--monitor watches what dynamics predict; give an agent, and method dmpc or one-step")
        if not isinstance(made, Agent):
            return made
        if given.dynamics is not None:
            made.swap_dynamics(resolve(given.dynamics)[1])
        self.agents.append(made)
        if given.monitor is None or self._watched is not None:
            return made
        nominal = read_episodes(given.monitor)
        self._watched = Watched(made, Monitor.calibrate(made.dynamics, nominal, execute=made.settings.execute))
        return self._watched

    def watch(self) -> dict[str, Any]:
        """Return the trace of the monitor, where there was one."""
        return {} if self._watched is None else {"monitor": self._watched.to_dict()}


def _is_agent(given: str) -> bool:
    return given != "random" and not given.endswith(".zip") and resolve(Path(given))[0] == "control-agent"


def _check_method(given: RunArguments) -> None:
    if not _is_agent(given.agent) or (given.dynamics is not None and given.method != "one-step"):
        raise ConfigError(
            f"--method {given.method} runs the models of a training run; give its directory, and --dynamics only with "
            "methods that have dynamics of their own (dmpc, one-step)"
        )


def _options(given: RunArguments, seed: int) -> dict[str, Any]:
    """Return the settings of the saved agent with what the flags change."""
    settings: AgentConfig = agent_at(Path(given.agent)).settings
    wanted = {"num_samples": given.samples, "budget_ms": given.budget_ms}
    changed = {name: value for name, value in wanted.items() if value is not None}
    if given.samples == 1:
        changed["warm_start"] = False  # one candidate, and no second one to choose from
    execute = settings.execute if given.execute is None else given.execute
    return {"settings": replace(settings, planner=replace(settings.planner, **changed), execute=execute, seed=seed)}


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
    if "monitor" in result:
        alarm = result["monitor"]["alarm_at"]
        rows["wish to adapt"] = "none" if alarm is None else f"after {alarm} steps of the first robot"
    if result["num_plans"]:
        rows["plans"] = f"{result['num_plans']}, {result['late_plans']} late, {result['faults']} faults"
    return rows
