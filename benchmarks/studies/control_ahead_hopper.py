"""Planning ahead for Hopper on a virtual clock: what resting while planning costs a body that falls.

    python benchmarks/studies/control_ahead_hopper.py --models DIR --data DIR

The clock and the chunks of 4 actions are those of `control_ahead`, and so are the arms `ideal`, `blocking`, `rtc` and
`one`; the agent is the trained one of the studies, and episodes last as long as in Gymnasium. Two arms more, because a
hopper that rests falls:

    coast      while the next plan is made, the rest of the old one is followed
    one-coast  as `one`, but outside the tube the rest of the old plan is followed while a new one is made

Nothing gusts here: what is not foreseen is what the dynamics get wrong. The tube is calibrated on episodes of the
agent's own that no arm meets, at the same coverage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from control_ahead import CHUNK, COVERAGE, POLICIES, Ride
from control_cells import SEEDS, Cells, Given, flags, interval, joined
from control_models import TASKS, model
from control_tasks import PLANNER, VALUE, fast

from forethought.app.control.places import environment
from forethought.control import Agent, AgentConfig, collect
from forethought.control.ahead import Tube, advance, chunk_residuals
from forethought.control.running import known
from forethought.core.rng import derive_seed
from forethought.data.episodes import open_episodes

TASK = "hopper-medium"
DELAYS = (1, 2, 4)
ARMS = ("blocking", "rtc", "one", "coast", "one-coast")
EPISODES, NOMINAL, LIMIT = 10, 6, 1000


def agent_of(given: Given, seed: int, num_robots: int = 1) -> Agent:
    """Return the agent of the studies, with longer chunks."""
    steps = 20 if given.quick else None
    names = ("proposal.diffusion", "dynamics.diffusion", VALUE)
    parts: list[Any] = [fast(model(TASK, name, given.models, given.data, steps=steps)) for name in names]
    facts, settings = known(TASKS[TASK]), AgentConfig(planner=PLANNER, execute=CHUNK, seed=seed)
    return Agent(*parts, ended=None if facts is None else facts.ended, settings=settings, num_robots=num_robots)


def tube_of(given: Given) -> Tube:
    """Return a tube of nominal chunks, from episodes that no arm meets."""
    out = Path(given.models) / TASK / ("nominal-quick" if given.quick else "nominal")
    make, num = environment(TASKS[TASK]), 2 if given.quick else NOMINAL
    nominal = open_episodes(out) if out.exists() else collect(make, agent_of(given, 7, num), out, episodes=num, seed=7)
    agent = agent_of(given, 7)
    return Tube.calibrate(
        chunk_residuals(agent.dynamics, nominal, execute=CHUNK), agent.body.observation.scale, coverage=COVERAGE
    )


def followed(ride: Ride, old_FA: torch.Tensor, periods: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Follow the old plan past its chunk for some periods, and return the plan for where that was foreseen to lead."""
    rest = old_FA[CHUNK : CHUNK + periods]
    padded = torch.cat([rest, rest[-1:].expand(ride.agent.horizon - len(rest), -1)])
    states = ride.agent.dynamics(ride.situation(), padded[None, None])[0, 0, :periods]
    start, _ = advance(ride.situation(), rest, states)
    for action in rest:
        ride.step(action)
    return ride.plan(start)


def coast(ride: Ride, periods: int, _tube: Tube) -> None:
    """Follow the old plan while the next one is made."""
    actions, _ = ride.plan(ride.situation())
    while not ride.over:
        for action in actions[:CHUNK]:
            ride.step(action)
        actions, _ = followed(ride, actions, periods)


def one_coast(ride: Ride, periods: int, tube: Tube) -> None:
    """Prepare a plan for the foreseen end of each chunk; where it did not come true, follow the old one meanwhile."""
    actions, states = ride.plan(ride.situation())
    while not ride.over:
        end, foreseen_O = advance(ride.situation(), actions[:CHUNK], states[:CHUNK])
        prepared, _ = ride.plan(replace(end, obs_BO=torch.from_numpy(tube.foreseen(foreseen_O, 0))[None]))
        for action in actions[:CHUNK]:
            ride.step(action)
        hit = tube.outcome(foreseen_O, ride.state) >= 0
        ride.hits, ride.misses = ride.hits + hit, ride.misses + (not hit)
        actions, states = ride.begun(prepared) if hit else followed(ride, actions, periods)


DRIVERS: dict[str, Callable[[Ride, int, Tube], None]] = {**POLICIES, "coast": coast, "one-coast": one_coast}


def drive(arm: str, delay: int, given: Given, seed: int, num: int) -> dict[str, Any]:
    """Return the figures of one arm at one delay."""
    agent, tube, env = agent_of(given, seed), tube_of(given), environment(TASKS[TASK])()
    facts, rides = known(TASKS[TASK]), []
    for number in range(num):
        state, _ = env.reset(seed=derive_seed(seed, "control.episode", number) % (1 << 31))
        random = derive_seed(seed, f"study.{arm}", number) % (1 << 31)
        ride = Ride(env, agent, np.asarray(state, np.float32), random=random, limit=LIMIT)
        DRIVERS[arm](ride, delay, tube)
        rides.append(ride)
    totals = [float(np.sum(ride.rewards)) for ride in rides]
    looks = sum(ride.hits + ride.misses for ride in rides)
    scores = [round(facts.score(total), 3) for total in totals] if facts else totals
    hits = sum(ride.hits for ride in rides) / looks if looks else None
    idle = [round(ride.idle / max(1, len(ride.rewards)), 4) for ride in rides]
    return {
        "seed": seed,
        "cell": [arm, delay],
        "scores": scores,
        "lengths": [len(ride.rewards) for ride in rides],
        "idle": idle,
        "hit_rate": hits,
        "shown": f"score {np.mean(scores):.1f}, idle {np.mean(idle):.1%}, hits {hits}",
    }


def summary(cells: Cells) -> dict[str, Any]:
    """Return score, idle share and hit rate of each arm, and its gains over resting by paired episodes."""
    found: dict[str, Any] = {}
    for arm, delay in [("ideal", 0), *((arm, delay) for delay in DELAYS for arm in ARMS)]:
        rows = [row for row in cells.rows.values() if row["cell"] == [arm, delay]]
        if not rows:
            continue
        entry: dict[str, Any] = {"score": interval(joined(rows, "scores")), "idle": interval(joined(rows, "idle"))}
        entry["steps"] = interval(joined(rows, "lengths"))
        rates = [row["hit_rate"] for row in rows if row["hit_rate"] is not None]
        entry["hit_rate"] = round(float(np.mean(rates)), 4) if rates else None
        rest = [row for row in cells.rows.values() if row["cell"] == ["blocking", delay]]
        best = [row for row in cells.rows.values() if row["cell"] == ["ideal", 0]]
        for name, other in (("over_blocking", rest), ("over_ideal", best)):
            if other and len(joined(other, "scores")) == len(joined(rows, "scores")) and other is not rows:
                entry[name] = interval(np.subtract(joined(rows, "scores"), joined(other, "scores")))
        if rest and arm != "ideal" and sum(joined(rest, "idle")):
            entry["idle_removed"] = round(1.0 - sum(joined(rows, "idle")) / sum(joined(rest, "idle")), 4)
        found[f"delay {delay}, {arm}"] = entry
    return found


def main() -> None:
    """Run all cells that are missing and write the result."""
    given = flags("control_ahead_hopper", __doc__)
    num, seeds = (2, SEEDS[:1]) if given.quick else (EPISODES, SEEDS)
    settings = {"task": TASK, "episodes": num, "chunk": CHUNK, "coverage": COVERAGE, "nominal": NOMINAL, "steps": LIMIT}
    cells = Cells("control_ahead_hopper", given, settings)
    for seed in seeds:
        for arm, delay in [("ideal", 0), *((arm, delay) for delay in DELAYS for arm in ARMS)]:

            def run(arm: str = arm, delay: int = delay, seed: int = seed) -> dict[str, Any]:
                return drive(arm, delay, given, seed, num)

            cells.run(f"{arm}/{delay}/{seed}", run)
    cells.write(summary(cells))


if __name__ == "__main__":
    main()
