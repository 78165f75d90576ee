"""A changed body: Walker2d's right foot limited to half its range, before and after adapting the dynamics alone.

    python benchmarks/studies/control_defect.py --models DIR --data DIR

The trained agent collects 100 play episodes on the changed body (noise and some uniform actions, no reward is read);
the dynamics alone are fine-tuned on them. Beside it: an oracle, whose dynamics are trained from the start on four times
as many episodes of the changed body, with the steps of the first training; and a joint model of actions and states that
is fine-tuned on the play. The share recovered is (after - before) / (first body - before), with an interval from
episodes drawn anew.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from control_cells import RESULTS, SEEDS, Cells, Given, episodes_of, flags, interval, joined
from control_models import COST, cpu_seconds, model, open_data, training
from control_tasks import VALUE, fast, settings_of

from forethought.app.control.places import environment
from forethought.control import AdaptConfig, Agent, ControlModel, Data, adapt, collect, fit_part, load_model
from forethought.control.models import JointHalves
from forethought.control.running import ExploreConfig, known
from forethought.core import files
from forethought.core.rng import generator
from forethought.data.episodes import Episodes, open_episodes, split_by_episode

TASK, ENV = "walker2d-medium", "Walker2d-v5"
CHANGES = ("actuator:2:-0.5:0.5",)
PLAY, NOISE, UNIFORM, PLAY_SEED = 100, 0.2, 0.1, 7
ORACLE_EPISODES = 400
ADAPT = AdaptConfig(steps=1500, lr=3e-4)
EPISODES, REDRAWS = 20, 2000
ARMS: dict[str, tuple[str, bool]] = {
    "first body": ("dynamics", False),
    "before": ("dynamics", True),
    "after": ("adapted", True),
    "oracle": ("oracle", True),
    "one candidate": ("none", True),
    "joint, first body": ("joint", False),
    "joint, before": ("joint", True),
    "joint, after": ("joint adapted", True),
}


def agent_of(parts: dict[str, ControlModel], seed: int, num: int, *, samples: int | None = None) -> Agent:
    """Return the planner of a set of parts: a joint model stands for proposal and dynamics."""
    facts, settings = known(ENV), settings_of(seed)
    if samples is not None:
        settings = replace(settings, planner=replace(settings.planner, num_samples=samples))
    options: dict[str, Any] = {"ended": None if facts is None else facts.ended, "num_robots": num}
    value: Any = parts["value"]
    if "joint" in parts:
        halves = JointHalves(fast(parts["joint"]))  # pyright: ignore[reportArgumentType]
        return Agent(halves.propose, halves.predict, value, settings=settings, body=value.body, **options)
    return Agent(fast(parts["proposal"]), fast(parts["dynamics"]), value, settings=settings, **options)


class Workshop:
    """What the arms need, made once in the folder of models: play data and the models adapted to it."""

    def __init__(self, given: Given) -> None:
        self.given, self.steps = given, 20 if given.quick else None
        self.place = given.models / TASK / "defect"

    def trained(self, part: str) -> ControlModel:
        """Return a part that was trained on the first body."""
        return model(TASK, part, self.given.models, self.given.data, steps=self.steps)

    def base(self) -> dict[str, ControlModel]:
        """Return the agent's parts of the first body."""
        names = {"proposal": "proposal.diffusion", "dynamics": "dynamics.diffusion", "value": VALUE}
        return {name: self.trained(part) for name, part in names.items()}

    def play(self, *, episodes: int = PLAY, seed: int = PLAY_SEED, name: str = "play") -> Episodes:
        """Return episodes that the agent collected on the changed body."""
        out = self.place / name
        if out.exists():
            return open_episodes(out)
        num = 4 if self.given.quick else episodes
        wish = ExploreConfig(noise=NOISE, uniform=UNIFORM)
        # One candidate a plan: play is to be broad, and it costs a fraction.
        policy = agent_of(self.base(), seed, min(num, 50), samples=1)
        return collect(environment(ENV, CHANGES), policy, out, episodes=num, explore=wish, seed=seed, env_id=ENV)

    def adapted(self, part: str) -> ControlModel:
        """Return a part fine-tuned on the play."""
        out = self.place / f"{part}-adapted"
        if (out / COST).exists():
            return load_model(out / "model")
        began = time.process_time()
        wish = replace(ADAPT, steps=self.steps or ADAPT.steps)
        original = open_data(TASK, self.given.data)[2].validation
        report = adapt(self.trained(part), self.play(), out, original=original, settings=wish, exists="resume")
        if part == "dynamics.diffusion":
            files.write_json(self.place / "errors.json", report.to_dict())
        files.write_json(out / COST, {"cpu_seconds": round(time.process_time() - began, 1)})
        return report.dynamics

    def oracle(self) -> ControlModel:
        """Return dynamics trained from the start on the changed body alone."""
        out = self.place / "oracle"
        if (out / COST).exists():
            return load_model(out / "model")
        began = time.process_time()
        more = self.play(episodes=ORACLE_EPISODES, seed=PLAY_SEED + 1, name="oracle-play")
        parts = split_by_episode(more, seed=0, fractions={"train": 0.9, "validation": 0.1})
        data = Data(parts["train"], parts["validation"])
        first = self.trained("dynamics.diffusion")
        settings = training(self.steps).of("dynamics.diffusion")
        made = fit_part("dynamics.diffusion", settings, data, first.body, out, exists="resume")
        files.write_json(out / COST, {"cpu_seconds": round(time.process_time() - began, 1)})
        return made

    def parts(self, which: str) -> dict[str, ControlModel]:
        """Return the parts of an arm."""
        base = self.base()
        if which.startswith("joint"):
            joint = self.trained("joint.diffusion") if which == "joint" else self.adapted("joint.diffusion")
            return {"joint": joint, "value": base["value"]}
        if which == "adapted":
            return {**base, "dynamics": self.adapted("dynamics.diffusion")}
        return {**base, "dynamics": self.oracle()} if which == "oracle" else base


def recovered(cells: Cells, before: str, after: str, first: str) -> dict[str, Any] | None:
    """Return how much of what was lost came back, with an interval from episodes drawn anew in pairs."""
    scores = [np.asarray(joined(found, "scores")) for arm in (before, after, first) if (found := rows_of(cells, arm))]
    if len(scores) < 3 or len({len(part) for part in scores}) > 1:
        return None
    pick = generator(0, "control.defect").integers(0, len(scores[0]), (REDRAWS, len(scores[0])))
    low, high, whole = (part[pick].mean(1) for part in scores)
    share = (high - low) / np.maximum(whole - low, 1e-9)
    points = scores[1] - scores[0]
    lost = float(scores[2].mean() - scores[0].mean())
    return {
        "points": interval(points),
        "lost": round(lost, 2),
        "share": round(float(points.mean()) / lost, 4) if lost else None,
        "share_interval": [round(float(bound), 4) for bound in np.quantile(share, [0.025, 0.975])],
    }


def rows_of(cells: Cells, arm: str) -> list[dict[str, Any]]:
    """Return the cells of an arm."""
    return [row for row in cells.rows.values() if row["cell"] == arm]


def planned_already(seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return the cells on the first body that `control_tasks` has run: the same agents in the same episodes."""
    path = RESULTS / "control_tasks.json"
    rows = files.read_json(path, what="result of a study")["rows"] if path.exists() else []
    known_rows = {row["key"]: row for row in rows}
    found = {}
    for arm, name in (("first body", "dmpc"), ("joint, first body", "joint")):
        for seed in seeds:
            row = known_rows.get(f"{TASK}/{name}/{seed}")
            if row is not None:
                found[f"{arm}/{seed}"] = {**row, "key": f"{arm}/{seed}", "cell": arm}
    return found


def summary(cells: Cells, place: Path) -> dict[str, Any]:
    """Return scores of the arms, recovered shares, and the errors of the dynamics before and after."""
    scores = {arm: interval(joined(rows_of(cells, arm), "scores")) for arm in ARMS if rows_of(cells, arm)}
    shares = {
        "adapted": recovered(cells, "before", "after", "first body"),
        "oracle": recovered(cells, "before", "oracle", "first body"),
        "joint": recovered(cells, "joint, before", "joint, after", "joint, first body"),
    }
    path = place / "errors.json"
    errors = files.read_json(path, what="errors of adaptation") if path.exists() else {}
    return {"scores": scores, "recovered": shares, "rollout_errors": errors}


def main() -> None:
    """Run all cells that are missing and write the result."""
    given = flags("control_defect", __doc__)
    num, seeds = (2, SEEDS[:1]) if given.quick else (EPISODES, SEEDS)
    settings = {"task": TASK, "changes": CHANGES, "episodes": num, "play": PLAY, "noise": NOISE, "uniform": UNIFORM}
    settings |= {"adapt_steps": ADAPT.steps, "adapt_lr": ADAPT.lr}
    cells, shop = Cells("control_defect", given, settings), Workshop(given)
    for key, row in ({} if given.quick else planned_already(seeds)).items():
        cells.rows.setdefault(key, row)
    for seed in seeds:
        for arm, (which, changed) in ARMS.items():

            def run(arm: str = arm, which: str = which, changed: bool = changed, seed: int = seed) -> dict[str, Any]:
                agent = agent_of(shop.parts(which), seed, num, samples=1 if which == "none" else None)
                before = agent.fingerprints()
                row = episodes_of(TASK, agent, seed, num, changes=CHANGES if changed else ())[1]
                return {"cell": arm, **row, "fingerprints": before}

            cells.run(f"{arm}/{seed}", run)
    cells.write(
        summary(cells, shop.place), cpu_seconds(TASK, given.models) | cpu_seconds("defect", given.models / TASK)
    )


if __name__ == "__main__":
    main()
