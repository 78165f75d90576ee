"""D-MPC against its baselines and the behaviour policy on four tasks: returns of the same trained parts.

    python benchmarks/studies/control_tasks.py --models DIR --data DIR

Every method gets the same data, the same denoising and regression steps, as many candidates, and the same episodes
(paired by seed). Behaviour is the return of the data's own episodes. The data is made for this project; it is not D4RL.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from control_cells import SEEDS, Cells, Given, episodes_of, flags, interval, joined
from control_models import STEPS, TASKS, cpu_seconds, model, open_data

from forethought.control import AgentConfig, ControlModel, SSRConfig
from forethought.control.running import Policy, known
from forethought.control.running.methods import METHODS, PARTS_OF, method

EPISODES = 20
FEWER = {"one-step": 6, "mbop": 6}
"""Episodes a seed of the methods that take a pass a step ahead; differences pair them with D-MPC's first ones."""
VALUE = "value.state"
EXECUTE = 2
"""Actions of a plan that are executed; chosen on seed 0, as all settings here."""
PLANNER = SSRConfig(num_samples=32)
NOISE = 0.2
FINER_STEPS = 6
FINER = {"dmpc, finer": "dmpc", "proposal, finer": "proposal"}
"""Methods with more denoising steps of the proposal, where the data mixes policies: 2 steps blur what they would do."""
MIXED = ("walker2d-mixed",)


def settings_of(seed: int, *, proposal_steps: int | None = None) -> AgentConfig:
    """Return how every method plans."""
    return AgentConfig(planner=replace(PLANNER, proposal_steps=proposal_steps), execute=EXECUTE, seed=seed)


def methods_of(task: str) -> tuple[str, ...]:
    """Return the methods that run on a task."""
    return (*METHODS, *FINER) if task in MIXED else METHODS


def fast(part: ControlModel) -> ControlModel:
    """Return a model that plans in bfloat16, as all methods do here; values stay in fp32."""
    return part if part.part == "value" else part.with_precision(torch.bfloat16)


def policy(task: str, name: str, given: Given, *, seed: int, num_robots: int) -> Policy:
    """Return a method on a task, made of parts that are trained where they are missing."""
    finer = FINER_STEPS if name in FINER else None
    name = FINER.get(name, name)
    wanted = [VALUE if part == "value" else part for part in PARTS_OF[name]]
    steps = 20 if given.quick else None
    parts = {part: fast(model(task, part, given.models, given.data, steps=steps)) for part in wanted}
    facts = known(TASKS[task])
    options: dict[str, Any] = {} if name == "cloned" else {"ended": None if facts is None else facts.ended}
    return method(
        name, parts, settings=settings_of(seed, proposal_steps=finer), noise=NOISE, num_robots=num_robots, **options
    )


def summary(cells: Cells, given: Given, tasks: tuple[str, ...]) -> dict[str, Any]:
    """Return scores with intervals by task and method, paired differences to D-MPC, and means over the tasks."""
    found: dict[str, Any] = {"tasks": {}, "finer_proposal_steps": FINER_STEPS}
    for task in tasks:
        rows = {name: [row for row in cells.rows.values() if row["cell"] == [task, name]] for name in methods_of(task)}
        rows = {name: part for name, part in rows.items() if part}
        entry: dict[str, Any] = {name: interval(joined(part, "scores")) for name, part in rows.items()}
        for name, part in rows.items():
            gaps = paired(rows.get("dmpc", []), part)
            if name != "dmpc" and len(gaps) > 1:
                entry[name]["dmpc_minus_this"] = interval(gaps)
        if all(name in rows for name in FINER):
            gaps = paired(rows["dmpc, finer"], rows["proposal, finer"])
            entry["proposal, finer"]["dmpc_finer_minus_this"] = interval(gaps)
        facts = known(TASKS[task])
        behaviour = open_data(task, given.data)[0].returns
        entry["behaviour"] = interval([facts.score(float(total)) for total in behaviour] if facts else behaviour)
        found["tasks"][task] = entry
    names = [*METHODS, "behaviour"]
    complete = [name for name in names if all(name in entry for entry in found["tasks"].values())]
    found["mean"] = {
        name: round(float(np.mean([entry[name]["mean"] for entry in found["tasks"].values()])), 2) for name in complete
    }
    return found


def paired(own: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[float]:
    """Return differences of scores over the seeds and episodes that both ran."""
    mine = {row["seed"]: row["scores"] for row in own}
    pairs = [(mine[row["seed"]], row["scores"]) for row in other if row["seed"] in mine]
    return [left - right for ours, theirs in pairs for left, right in zip(ours, theirs, strict=False)]


def main() -> None:
    """Run all cells that are missing and write the result."""
    given = flags("control_tasks", __doc__)
    num, seeds = (2, SEEDS[:1]) if given.quick else (EPISODES, SEEDS)
    tasks = tuple(TASKS)[:1] if given.quick else tuple(TASKS)
    settings = {
        "episodes": num,
        "fewer_episodes": FEWER,
        "num_samples": PLANNER.num_samples,
        "ranking": PLANNER.ranking,
        "top_k": PLANNER.top_k,
        "execute": EXECUTE,
        "mbop_noise": NOISE,
        "value": VALUE,
        "training_steps": STEPS,
    }
    cells = Cells("control_tasks", given, settings)
    for seed in seeds:
        for task in tasks:
            for name in methods_of(task):

                def cell(task: str = task, name: str = name, seed: int = seed) -> dict[str, Any]:
                    episodes = min(num, FEWER.get(name, num))
                    made = policy(task, name, given, seed=seed, num_robots=episodes)
                    return {"cell": [task, name], **episodes_of(task, made, seed, episodes)[1]}

                cells.run(f"{task}/{name}/{seed}", cell)
    costs = {task: cpu_seconds(task, given.models) for task in tasks}
    cells.write(summary(cells, given, tasks), costs)


if __name__ == "__main__":
    main()
