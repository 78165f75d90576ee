"""The job of control as a run of its own: one row a seed, then the figures over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forethought.app.demo.body import CHUNK, GOAL, STEPS, Story, changed_body, new_reward
from forethought.app.demo.clock import ARMS, POLICIES, Ride, centres_for
from forethought.app.demo.settings import ControlSize
from forethought.control import Tube
from forethought.control.ahead import chunk_residuals
from forethought.core import files
from forethought.core.progress import track
from forethought.core.rng import derive_seed
from forethought.core.run import Exists, Run
from forethought.stats import mean_interval

COVERAGE = 0.9
KIND = "demo.control"


def run_control(size: ControlSize, out: Path, *, exists: Exists = "resume") -> dict[str, Any]:
    """Train, ride and measure for every seed that is missing, and return the figures over all.

    Raises:
        InputError: the directory cannot be used.
        InterruptedRunError: interrupted and saved.
    """
    with Run.open(out, config=size, recipe="demo.control", exists=exists) as run:
        finished = run.result()
        if finished is not None:
            return finished
        rows = [_row(size, out, seed) for seed in size.seeds]
        result = {"kind": KIND, "seeds": list(size.seeds), **summary(rows)}
        run.write_result(result)
    return result


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return each part's figures with 95 % intervals over the rides of all seeds."""
    reward = {name: _mean([row["reward"][name] for row in rows]) for name in ("random", "told", "told_other")}
    body = [row["body"] for row in rows]
    healed = [each for each in body if each["adapted"] is not None]
    return {
        "reward": {
            **reward,
            "weights_unchanged": all(row["reward"]["weights_unchanged"] for row in rows),
            "positions": [places for row in rows for places in row["reward"]["positions"]],
            "turn": rows[0]["reward"]["turn"],
        },
        "body": {
            "as_learned": _mean([each["as_learned"] for each in body]),
            "changed": _mean([each["changed"] for each in body]),
            "adapted": _mean([each["adapted"] for each in healed]) if healed else None,
            "noticed": len(healed),
            "false_alarms": sum(each["false_alarm"] for each in body),
            "steps_to_alarm": [each["steps_to_alarm"] for each in body],
            "story": {name: body[0][name] for name in ("trace", "rewards", "changed_at", "adapted_at", "errors")},
        },
        "ahead": _ahead_summary(rows),
    }


def _row(size: ControlSize, out: Path, seed: int) -> dict[str, Any]:
    place = out / f"seed-{seed}"
    found: dict[str, Any] = {}
    story: Story | None = None
    for name, make in (("reward", new_reward), ("body", changed_body), ("ahead", _ahead)):
        path = place / f"{name}.json"
        if not path.exists():
            story = story or Story(size, place, seed)
            files.write_json(path, make(story))
        found[name] = files.read_json(path, what=f"control, {name}")
    return found


def _ahead(story: Story) -> dict[str, Any]:
    """Return the rides of every arm and delay on the virtual clock."""
    agent, size = story.agent(GOAL), story.size
    residuals = chunk_residuals(agent.dynamics, story.nominal, execute=CHUNK)
    cells = [(arm, delay) for delay in size.delays for arm in ARMS]
    found: dict[str, Any] = {"ideal": _cell(story, agent, "ideal", 0.0, residuals)}
    with track(f"planning ahead, seed {story.seed}", len(cells), unit="cells") as bar:
        for done, (arm, delay) in enumerate(cells, start=1):
            found[f"{arm} {delay:g}"] = _cell(story, agent, arm, delay, residuals)
            bar.update(done)
    return found


def _cell(story: Story, agent: Any, arm: str, delay: float, residuals: Any) -> dict[str, Any]:
    scale, centres = agent.body.observation.scale, centres_for(arm, delay, CHUNK)
    tube = Tube.calibrate(residuals, scale, num_centres=centres, coverage=COVERAGE, seed=story.seed)
    rides = []
    for number in range(story.size.rides):
        env, state = story.env(1000 + number)
        made = Ride(env, agent, state, derive_seed(story.seed, f"demo.{arm}", number) % (1 << 31), STEPS)
        # A plan that is there within a period still misses the period's action.
        POLICIES[arm](made, int(np.ceil(delay)), tube)
        rides.append(made)
    return {
        "returns": [float(np.sum(each.rewards)) for each in rides],
        "idle": [each.idle / STEPS for each in rides],
        "hits": sum(each.statistics.hits for each in rides),
        "misses": sum(each.statistics.misses for each in rides),
    }


def _ahead_summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    cells = []
    for key in rows[0]["ahead"]:
        arm, _, delay = key.partition(" ")
        mine = [row["ahead"][key] for row in rows]
        hits, misses = sum(each["hits"] for each in mine), sum(each["misses"] for each in mine)
        cell = {
            "arm": arm,
            "delay": float(delay or 0.0),
            "return": _mean([each["returns"] for each in mine]),
            "idle": _mean([each["idle"] for each in mine]),
            "hit_rate": hits / (hits + misses) if hits + misses else None,
        }
        if arm not in ("ideal", "blocking"):
            rest = [row["ahead"][f"blocking {delay}"] for row in rows]
            cell["over_blocking"] = _mean(
                [np.subtract(a["returns"], b["returns"]).tolist() for a, b in zip(mine, rest, strict=True)]
            )
            still = float(np.mean([each["idle"] for each in rest]))
            cell["idle_removed"] = 1.0 - float(np.mean([each["idle"] for each in mine])) / still if still else None
        cells.append(cell)
    return cells


def _mean(groups: Sequence[Sequence[float]]) -> dict[str, Any]:
    values = [float(value) for group in groups for value in group]
    if len(values) < 2:
        return {"mean": float(np.mean(values)), "interval": None, "rides": len(values)}
    found = mean_interval(values)
    return {"mean": found.estimate, "interval": [found.low, found.high], "rides": len(values)}
