"""Multi-step against one-step models: open-loop error by steps ahead on held-out episodes, and returns.

    python benchmarks/studies/control_horizon.py --models DIR --data DIR

Errors are root mean squares over all numbers of an observation, in standard deviations of the data, for the actions
that were taken. Intervals are over held-out episodes, drawn anew with replacement. Beside the one-step regression
stands a one-step diffusion, the multi-step model with a horizon of 1 fed its own predictions, with as many training
steps; and models of one task are asked about another's data, where actions are unlike those learned from. Returns cross
dynamics (multi-step, one-step) with proposals (multi-step diffusion, a cloned policy with noise step by step), all else
alike.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from control_cells import SEEDS, Cells, Given, episodes_of, flags, interval, joined
from control_models import COST, TASKS, cpu_seconds, model, open_data, training
from control_tasks import NOISE, PLANNER, VALUE, fast, settings_of
from numpy.typing import NDArray

from forethought.control import Agent, fit_part, load_model
from forethought.control.models import MBOPProposal, situation_of
from forethought.control.models.stepwise import advanced
from forethought.control.running import known
from forethought.control.situation import Situation
from forethought.core import files
from forethought.core.rng import generator
from forethought.data.episodes import WindowConfig, WindowCutter

MODELS = {"multi-step": "dynamics.diffusion", "one-step": "dynamics.one-step"}
KINDS = (*MODELS, "one-step diffusion")
DIFFUSED = ("hopper-medium", "halfcheetah-medium", "walker2d-medium")
"""Tasks whose one-step diffusion was trained."""
ELSEWHERE = (("walker2d-medium", "walker2d-mixed"),)
"""Models of one task on another's data."""
PROPOSALS = {"multi-step": "proposal.diffusion", "one-step": "policy.cloning"}
CLOSED = ("hopper-medium", "walker2d-medium")
WINDOWS, REDRAWS, EPISODES = 1500, 1000, 10


class Rolled:
    """A diffusion of one step, fed its own predictions."""

    def __init__(self, dynamics: Any) -> None:
        self.dynamics, self.body = dynamics, dynamics.body

    def __call__(self, start: Situation, actions_BNFA: torch.Tensor) -> torch.Tensor:
        """Return the states (B, 1, F, O) of one candidate a row."""
        states = []
        for action in actions_BNFA[:, 0].unbind(1):
            following = self.dynamics(start, action[:, None, None])[:, 0, 0]
            start = advanced(start, action, following)
            states.append(following)
        return torch.stack(states, 1)[:, None]


def dynamics_of(task: str, kind: str, given: Given) -> Any:
    """Return trained dynamics of a kind."""
    steps = 20 if given.quick else None
    if kind in MODELS:
        return model(task, MODELS[kind], given.models, given.data, steps=steps)
    out = given.models / task / "dynamics.one-step-diffusion"
    if (out / COST).exists():
        return Rolled(load_model(out / "model"))
    began, (_, body, data) = time.process_time(), open_data(task, given.data)
    settings = training(steps).of("dynamics.diffusion")
    settings = replace(settings, model=replace(settings.model, horizon=1))
    made = fit_part("dynamics.diffusion", settings, data, body, out, exists="resume")
    files.write_json(out / COST, {"cpu_seconds": round(time.process_time() - began, 1)})
    return Rolled(made)


def errors(task: str, kind: str, given: Given, on: str | None = None) -> dict[str, Any]:
    """Return squared errors by steps ahead, summed over the windows of each held-out episode (of another task's)."""
    dynamics = dynamics_of(task, kind, given)
    held = open_data(on or task, given.data)[2].validation
    cutter = WindowCutter(held, WindowConfig(horizon=16, anchors="whole"))
    order = generator(0, "control.horizon").permutation(len(cutter.anchors))[: 100 if given.quick else WINDOWS]
    rows = cutter.anchors[np.sort(order)]
    batch = cutter.cut(rows)
    with torch.no_grad():
        taken = torch.as_tensor(batch.actions, dtype=torch.float32)[:, None]
        states = dynamics(situation_of(batch), taken)[:, 0].numpy()  # pyright: ignore[reportCallIssue]
    scale = dynamics.body.observation.scale
    square = (((states - batch.next_observations) / scale) ** 2).mean(2)
    still = (((batch.observations[:, None] - batch.next_observations) / scale) ** 2).mean(2)
    episode = np.searchsorted(held.starts, rows, side="right") - 1
    found = {name: _by_episode(values, episode) for name, values in (("model", square), ("persistence", still))}
    rms = np.sqrt(square.mean(0))
    return {
        "windows": np.unique(episode, return_counts=True)[1].tolist(),
        **found,
        "rms": np.round(rms.astype(float), 4).tolist(),
        "median": np.round(np.sqrt(np.median(square, 0)).astype(float), 4).tolist(),
        "shown": f"error {rms[0]:.3f} after 1 step, {rms[-1]:.3f} after {len(rms)}",
    }


def closed(task: str, dynamics: str, proposal: str, given: Given, seed: int, num: int) -> dict[str, Any]:
    """Return the returns of a planner made of these dynamics and proposals."""
    steps = 20 if given.quick else None
    names = {MODELS[dynamics], PROPOSALS[proposal], VALUE} | ({MODELS["one-step"]} if proposal == "one-step" else set())
    parts: dict[str, Any] = {name: fast(model(task, name, given.models, given.data, steps=steps)) for name in names}
    proposes, predicts = parts[PROPOSALS[proposal]], parts[MODELS[dynamics]]
    if proposal == "one-step":
        proposes = MBOPProposal(proposes, parts[MODELS["one-step"]], noise=NOISE)
        predicts = proposes.predict if dynamics == "one-step" else predicts
    facts = known(TASKS[task])
    agent = Agent(
        proposes,
        predicts,
        parts[VALUE],
        body=parts[VALUE].body,
        ended=None if facts is None else facts.ended,
        settings=settings_of(seed),
        num_robots=num,
    )
    return episodes_of(task, agent, seed, num)[1]


def summary(cells: Cells, given: Given, tasks: tuple[str, ...]) -> dict[str, Any]:
    """Return errors by horizon with the ratio at the last step, and closed-loop scores."""
    found: dict[str, Any] = {"errors": {}, "closed_loop": {}}
    for place in (*tasks, *(f"{task} on {on}" for task, on in ELSEWHERE)):
        rows = {kind: row for kind in KINDS if (row := cells.rows.get(f"error/{place}/{kind}"))}
        if "multi-step" in rows:
            found["errors"][place] = {
                **{kind: row["rms"] for kind, row in rows.items()},
                **{f"{kind}, median window": row["median"] for kind, row in rows.items()},
                **{f"ratio_at_16 to {kind}": _ratio(rows["multi-step"], row) for kind, row in rows.items()},
            }
            found["errors"][place].pop("ratio_at_16 to multi-step")
    for task in CLOSED:
        for dynamics in MODELS:
            for proposal in PROPOSALS:
                part = [row for row in cells.rows.values() if row.get("cell") == [task, dynamics, proposal]]
                if part:
                    name = f"{dynamics} dynamics, {proposal} proposals"
                    found["closed_loop"].setdefault(task, {})[name] = interval(joined(part, "scores"))
    return found


def _by_episode(square_MF: NDArray[Any], episode_M: NDArray[Any]) -> list[list[float]]:
    return [np.round(square_MF[episode_M == each].sum(0).astype(float), 5).tolist() for each in np.unique(episode_M)]


def _ratio(multi: Any, one: Any) -> dict[str, Any]:
    """Return the error of multi-step dynamics at the last step over that of one-step ones, over redrawn episodes."""
    left, right = (np.asarray(row["model"])[:, -1] for row in (multi, one))
    pick = generator(0, "control.horizon.redraw").integers(0, len(left), (REDRAWS, len(left)))
    redrawn = np.sqrt(left[pick].sum(1) / right[pick].sum(1))
    low, high = np.quantile(redrawn, [0.025, 0.975])
    return {
        "ratio": round(float(np.sqrt(left.sum() / right.sum())), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "episodes": len(left),
    }


def main() -> None:
    """Run all cells that are missing and write the result."""
    given = flags("control_horizon", __doc__)
    tasks = tuple(TASKS)[:1] if given.quick else tuple(TASKS)
    num, seeds = (2, SEEDS[:1]) if given.quick else (EPISODES, SEEDS)
    settings = {"windows": WINDOWS, "episodes": num, "num_samples": PLANNER.num_samples}
    cells = Cells("control_horizon", given, settings)
    for task in tasks:
        for kind in KINDS if task in DIFFUSED else MODELS:
            cells.run(f"error/{task}/{kind}", lambda task=task, kind=kind: errors(task, kind, given))
    for task, on in ELSEWHERE if not given.quick else ():
        for kind in KINDS:
            key = f"error/{task} on {on}/{kind}"
            cells.run(key, lambda task=task, on=on, kind=kind: errors(task, kind, given, on))
    for seed in seeds:
        for task in (task for task in CLOSED if task in tasks):
            for dynamics in MODELS:
                for proposal in PROPOSALS:

                    def cell(
                        task: str = task, d: str = dynamics, p: str = proposal, seed: int = seed
                    ) -> dict[str, Any]:
                        return {"cell": [task, d, p], **closed(task, d, p, given, seed, num)}

                    cells.run(f"closed/{task}/{dynamics}/{proposal}/{seed}", cell)
    cells.write(summary(cells, given, tasks), {task: cpu_seconds(task, given.models) for task in tasks})


if __name__ == "__main__":
    main()
