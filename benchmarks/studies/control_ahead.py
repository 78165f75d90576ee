"""Planning ahead on a virtual clock: idle time and return when a plan takes 0.5 to 4 control periods.

    python benchmarks/studies/control_ahead.py                     the double integrator with gusts
    python benchmarks/studies/control_ahead.py --quick --out FILE  tiny, to its last line

The clock is virtual: planning takes as many control periods as the table says, whatever this machine needs, and the
environment moves on meanwhile. Chunks of 4 actions, horizon 8. Arms:

    ideal      plans take no time
    blocking   at the end of a chunk the robot rests while it plans for where resting will lead
    rtc        planning begins early, from the present state; the actions that will have been executed by the time the
               plan is there are frozen in it (inpainted), in the manner of real-time chunking
    one        one plan is prepared for the foreseen end of the chunk; outside the tube the robot rests and plans
    several    as many plans as fit into a chunk's time, one after another, each for a likely end
    one-tight, several-tight   the same with tubes that cover half of the nominal chunks: a gust comes in 48 % of them

Every arm meets the same starts and the same weather. Nominal chunks, of the seed's own agent in other weather,
calibrate the tubes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.control import Agent, AgentConfig, Data, Objective, SSRConfig, body_of, collect, fit_part, preset
from forethought.control.ahead import Tube, advance, chunk_residuals
from forethought.control.running import RandomPolicy
from forethought.control.situation import Situation
from forethought.core import files
from forethought.core.environment import environment
from forethought.core.rng import derive_seed, generator, torch_generator
from forethought.data.episodes import Episodes, split_by_episode
from forethought.diffusion import Inpaint, draw_noise, sample
from forethought.envs.double_integrator import DoubleIntegrator
from forethought.plan import Candidates
from forethought.stats import mean_interval

OUT = Path(__file__).resolve().parents[1] / "results" / "studies" / "control_ahead.json"
CHUNK, SAMPLES, GOAL = 4, 32, 1.0
COVERAGE, TIGHT = 0.9, 0.5
"""Of the tubes; not tuned."""
DELAYS = (0.5, 1.0, 2.0, 4.0)
ARMS = ("blocking", "rtc", "one", "several", "one-tight", "several-tight")
WEATHER: dict[str, Any] = {"gusts": 0.15, "gust_size": 0.4}
SEEDS, EPISODES, STEPS = (0, 1, 2), 20, 80


@dataclass(frozen=True)
class Size:
    """How large the study is."""

    seeds: tuple[int, ...] = SEEDS
    episodes: int = EPISODES
    delays: tuple[float, ...] = DELAYS
    training: int = 600


@dataclass
class Ride:
    """One episode so far: what it earned, how long it idled, and how often the next plan was there."""

    env: Any
    agent: Agent
    state: NDArray[np.float32]
    random: int
    rewards: list[float] = field(default_factory=list)
    idle: int = 0
    hits: int = 0
    misses: int = 0
    plans: int = 0
    limit: int = STEPS
    fallen: bool = False

    @property
    def over(self) -> bool:
        """Whether the time is up, or the robot has fallen."""
        return self.fallen or len(self.rewards) >= self.limit

    def situation(self) -> Situation:
        """Return where the robot stands."""
        return Situation.first(torch.from_numpy(self.state)[None], self.agent.body.act_dim, 0)

    def step(self, action: Any) -> None:
        """Live one control period."""
        if not self.over:
            state, reward, self.fallen, *_ = self.env.step(np.asarray(action, np.float32).reshape(-1))
            self.state = np.asarray(state, np.float32)
            self.rewards.append(float(reward))

    def plan(self, start: Situation) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the actions (F, A) and the foreseen states (F, O) of a plan."""
        self.plans += 1
        draw = torch_generator(self.random, "study.plan", self.plans)
        plan = self.agent.planner(self.agent.problem(start), draw)
        population: Any = plan.population
        return plan.actions_BHA[0], population.candidates.states_BNHS[0, int(population.chosen_B[0])]

    def begun(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a prepared plan with the states that it leads to from here, not from where it was to begin."""
        return actions, self.agent.dynamics(self.situation(), actions[None, None])[0, 0]

    def rest(self, periods: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Idle for some periods, and return the plan for where that was foreseen to lead."""
        actions = torch.zeros(1, 1, self.agent.horizon, self.agent.body.act_dim)
        states = self.agent.dynamics(self.situation(), actions)[0, 0, :periods]
        start, _ = advance(self.situation(), actions[0, 0, :periods], states)
        for _ in range(periods):
            self.idle += not self.over
            self.step(actions[0, 0, 0])
        return self.plan(start)


def ideal(ride: Ride, _periods: int, _tube: Tube) -> None:
    """Plans take no time."""
    while not ride.over:
        actions, _ = ride.plan(ride.situation())
        for action in actions[:CHUNK]:
            ride.step(action)


def blocking(ride: Ride, periods: int, _tube: Tube) -> None:
    """Rest while planning."""
    actions, _ = ride.plan(ride.situation())
    while not ride.over:
        for action in actions[:CHUNK]:
            ride.step(action)
        actions, _ = ride.rest(periods)


def ahead(ride: Ride, periods: int, tube: Tube) -> None:
    """Prepare plans for likely ends of each chunk; rest and plan where none of them came true."""
    actions, states = ride.plan(ride.situation())
    while not ride.over:
        end, foreseen_O = advance(ride.situation(), actions[:CHUNK], states[:CHUNK])
        prepared = [
            ride.plan(replace(end, obs_BO=torch.from_numpy(tube.foreseen(foreseen_O, number))[None]))
            for number in range(tube.num_centres)
        ]
        for action in actions[:CHUNK]:
            ride.step(action)
        outcome = tube.outcome(foreseen_O, ride.state)
        ride.hits, ride.misses = ride.hits + (outcome >= 0), ride.misses + (outcome < 0)
        actions, states = ride.begun(prepared[outcome][0]) if outcome >= 0 else ride.rest(periods)


def rtc(ride: Ride, periods: int, _tube: Tube) -> None:
    """Plan from the present with the next actions frozen, and go over to the new plan when it is there."""
    actions, _ = ride.plan(ride.situation())
    queue = list(actions[:CHUNK])
    while not ride.over:
        while len(queue) > periods:
            ride.step(queue.pop(0))
        fresh = frozen_plan(ride, torch.stack(queue[:periods]))
        for action in queue:
            ride.step(action)
        queue = list(fresh[periods : periods + CHUNK])


@torch.no_grad()
def frozen_plan(ride: Ride, committed_dA: torch.Tensor) -> torch.Tensor:
    """Return the actions (F, A) of a plan whose first ones are committed already."""
    ride.plans += 1
    agent, start = ride.agent, ride.situation()
    rho, draw = agent.proposal, torch_generator(ride.random, "study.plan", ride.plans)
    noise, between = draw_noise((SAMPLES, agent.horizon, agent.body.act_dim), rho.sampler, draw)
    held = torch.zeros(1, agent.horizon, agent.body.act_dim)
    held[0, : len(committed_dA)] = rho.action.normalise(committed_dA)
    mask = (torch.arange(agent.horizon) < len(committed_dA))[None, :, None]
    drawn = sample(
        rho.inference().bind(rho.context(start)),
        noise,
        process=rho.settings.process,
        sampler=rho.sampler,
        between=between,
        inpaint=Inpaint(held, mask, clean=False),
    )
    actions = rho.action.restore(drawn).clamp(-1.0, 1.0)[None]
    verdict = agent.judge.verdict(Candidates(start, actions, agent.dynamics(start, actions)))
    return actions[0, int(verdict.costs_BN[0].argmin())]


POLICIES: dict[str, Callable[[Ride, int, Tube], None]] = {
    "ideal": ideal,
    "blocking": blocking,
    "rtc": rtc,
    "one": ahead,
    "several": ahead,
    "one-tight": ahead,
    "several-tight": ahead,
}


def train(seed: int, folder: Path, steps: int) -> Agent:
    """Return an agent of the double integrator, trained on random play in its weather."""
    play = _play(folder / "play", seed, 150, hold=True)
    parts = split_by_episode(play, seed=seed, fractions={"train": 0.9, "validation": 0.1})
    data, body = Data(parts["train"], parts["validation"]), body_of(play)
    made: dict[str, Any] = {}
    for name in ("proposal.diffusion", "dynamics.diffusion"):
        settings = preset("tiny").of(name)
        settings = replace(settings, loop=replace(settings.loop, steps=steps))
        made[name] = fit_part(name, settings, data, body, folder / name, seed=seed, exists="resume")
    near = Objective(
        lambda before, action, after: np.exp(-2.0 * (after[..., 0] - GOAL) ** 2) - 0.02 * after[..., 1] ** 2
    )
    settings = AgentConfig(execute=CHUNK, planner=SSRConfig(num_samples=SAMPLES), seed=seed)
    return Agent(made["proposal.diffusion"], made["dynamics.diffusion"], objective=near, settings=settings)


def calibrated(agent: Agent, folder: Path, seed: int, num_centres: int, coverage: float) -> Tube:
    """Return a tube of the agent's own nominal chunks, in weather that no arm meets."""
    place = folder / "nominal"
    agent.reset()
    nominal = _play(place, seed + 1000, 20, policy=agent)
    residuals = chunk_residuals(agent.dynamics, nominal, execute=CHUNK)
    return Tube.calibrate(residuals, agent.body.observation.scale, num_centres=num_centres, coverage=coverage)


class Held(RandomPolicy):
    """Random actions, each held for some steps, so that play goes somewhere."""

    def act(self, observation: Any) -> NDArray[np.float32]:
        """Return the action of this step."""
        fresh = super().act(observation)
        change = generator(0, "study.hold", self._count).random() < 0.25
        self._count += 1
        self._held = fresh if change or self._held is None else self._held
        return self._held

    _count = 0
    _held: NDArray[np.float32] | None = None


def _play(out: Path, seed: int, episodes: int, *, policy: Any = None, hold: bool = False) -> Episodes:
    from gymnasium.wrappers import TimeLimit

    from forethought.data.episodes.reading import read_episodes

    if out.exists():
        return read_episodes(out)
    bound = np.ones(1, np.float32)
    chosen = policy or (Held if hold else RandomPolicy)(-bound, bound, seed=seed)
    return collect(lambda: TimeLimit(DoubleIntegrator(**WEATHER), 40), chosen, out, episodes=episodes, seed=seed)


def drive(agent: Agent, name: str, delay: float, tube: Tube, seed: int, episodes: int) -> list[Ride]:
    """Return the rides of one arm."""
    rides = []
    for number in range(episodes):
        env = DoubleIntegrator(goal=GOAL, **WEATHER)
        state, _ = env.reset(seed=derive_seed(seed, "study.episode", number) % (1 << 31))
        ride = Ride(env, agent, state, random=derive_seed(seed, f"study.{name}", number) % (1 << 31))
        # A plan that is there within a period still misses the period's action.
        POLICIES[name](ride, int(np.ceil(delay)), tube)
        rides.append(ride)
    return rides


def cell(rides: list[Ride]) -> dict[str, Any]:
    """Return the figures of one arm, seed and delay."""
    looks = sum(ride.hits + ride.misses for ride in rides)
    return {
        "returns": [float(np.sum(ride.rewards)) for ride in rides],
        "idle": float(np.mean([ride.idle / max(1, len(ride.rewards)) for ride in rides])),
        "hit_rate": sum(ride.hits for ride in rides) / looks if looks else None,
        "plans": float(np.mean([ride.plans for ride in rides])),
    }


def run(size: Size, out: Path, folder: Path) -> None:
    """Run all cells that are missing and write the result after each."""
    rows: dict[str, dict[str, Any]] = {}
    if out.exists():
        rows = {row["key"]: row for row in files.read_json(out, what="study")["rows"]}
    for seed in size.seeds:
        wanted = [(name, delay) for delay in size.delays for name in ARMS] + [("ideal", 0.0)]
        keys = {f"seed {seed}, delay {delay:g}, {name}": (name, delay) for name, delay in wanted}
        if all(key in rows for key in keys):
            continue
        began = time.process_time()
        place = folder / f"seed-{seed}"
        agent = train(seed, place, size.training)
        spent = time.process_time() - began
        for key, (name, delay) in keys.items():
            if key in rows:
                continue
            began = time.process_time()
            centres = max(1, int(CHUNK / delay)) if name.startswith("several") else 1
            coverage = TIGHT if name.endswith("-tight") else COVERAGE
            tube = calibrated(agent, place, seed, centres, coverage)
            figures = cell(drive(agent, name, delay, tube, seed, size.episodes))
            seconds, spent = round(time.process_time() - began + spent, 1), 0.0
            facts = {"seed": seed, "delay": delay, "arm": name, "centres": centres, "radius": tube.radius}
            rows[key] = {"key": key, **facts, **figures, "cpu_seconds": seconds}
            write(rows, size, out)
            sys.stdout.write(f"{key}: {np.mean(figures['returns']):.1f}, idle {figures['idle']:.0%}\n")


def summary(rows: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return each arm's mean return with its interval, its gain over blocking by paired episodes, and idle time."""
    found: dict[str, Any] = {}
    for delay in sorted({row["delay"] for row in rows.values()}):
        block = _returns(rows, "blocking", delay)
        for arm in ("ideal", *ARMS):
            chosen = [row for row in rows.values() if (row["arm"], row["delay"]) == (arm, delay)]
            if not chosen:
                continue
            returns = _returns(rows, arm, delay)
            interval = mean_interval(list(returns.values()))
            entry = {"return": interval.estimate, "interval": [interval.low, interval.high], "episodes": len(returns)}
            entry["idle"] = float(np.mean([row["idle"] for row in chosen]))
            rates = [row["hit_rate"] for row in chosen if row["hit_rate"] is not None]
            entry["hit_rate"] = float(np.mean(rates)) if rates else None
            shared = [returns[key] - block[key] for key in returns if key in block]
            if arm != "blocking" and len(shared) > 1:
                gain = mean_interval(shared)
                entry["over_blocking"] = [gain.estimate, gain.low, gain.high]
            found[f"delay {delay:g}, {arm}"] = entry
    return found


def _returns(rows: Mapping[str, dict[str, Any]], arm: str, delay: float) -> dict[tuple[int, int], float]:
    return {
        (row["seed"], number): value
        for row in rows.values()
        if (row["arm"], row["delay"]) == (arm, delay)
        for number, value in enumerate(row["returns"])
    }


def write(rows: Mapping[str, dict[str, Any]], size: Size, out: Path) -> None:
    """Write the result file as it stands."""
    facts = environment()
    record = {
        "command": "python benchmarks/studies/control_ahead.py",
        "machine": {**facts["hardware"], "python": facts["python"], **facts["packages"]},
        "seeds": sorted({row["seed"] for row in rows.values()}),
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows.values()), 1),
        "settings": {
            "chunk": CHUNK,
            "samples": SAMPLES,
            "episodes": size.episodes,
            "steps": STEPS,
            "weather": WEATHER,
            "training": size.training,
            "coverage": [COVERAGE, TIGHT],
        },
        "rows": list(rows.values()),
        "summary": summary(rows),
    }
    files.make_directory(out.parent)
    files.write_json(out, record)


def main() -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(prog="benchmarks/studies/control_ahead.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny; give --out")
    parser.add_argument("--out", type=Path, default=OUT, help="the result file, gone on with")
    parser.add_argument("--work", type=Path, help="keep the trained models here, for going on")
    given = parser.parse_args()
    if given.quick and given.out == OUT:
        parser.error("--quick writes no result of its own; give --out")
    torch.set_num_threads(1)
    size = Size((0,), 2, (1.0,), 60) if given.quick else Size()
    with tempfile.TemporaryDirectory() as folder:
        run(size, given.out, given.work or Path(folder))


if __name__ == "__main__":
    main()
