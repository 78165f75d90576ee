"""A reward said at run time: Walker2d is told a height of its torso, with and without its learned value.

    python benchmarks/studies/control_reward.py --models DIR --data DIR

The agent is the one trained for walking; nothing is trained here, and its parameters' hashes are compared before and
after. The reward of a step is -((z - target) / 0.05)^2, down to -9; "with value" adds the learned value, both terms
standardised over the candidates. "value alone" is the agent as trained, which shows what the walk does by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from control_cells import SEEDS, Cells, Given, episodes_of, flags, interval
from control_models import cpu_seconds, model
from control_tasks import VALUE, fast, settings_of

from forethought.control import Agent, Objective
from forethought.control.running import Finished, known

TASK = "walker2d-medium"
TARGETS = (0.9, 1.2, 1.4)
BAND = 0.05
KAPPA = 0.5
EPISODES = 5
ARMS = ("height", "height and value")


def height(target: float) -> Callable[..., Any]:
    """Return the reward of a step for keeping the torso at a height."""
    return lambda before, action, after: -(((after[..., 0] - target) / BAND) ** 2).clip(0.0, 9.0)


def objective(arm: str, target: float, value: Any) -> Objective | None:
    """Return what the agent is told; None leaves it its learned value."""
    if arm == "value alone":
        return None
    wish = Objective(height(target))
    if arm == "height":
        return wish
    return wish.normalised() + KAPPA * Objective.learned(value).normalised()


def measures(finished: list[Finished]) -> dict[str, Any]:
    """Return for each episode and target: mean distance and share of the lived steps within 5 cm."""
    heights = [np.asarray([seen[0] for seen in (*each.observations[1:], each.final)]) for each in finished]
    found: dict[str, Any] = {"mean_height": [round(float(z.mean()), 4) for z in heights]}
    for target in TARGETS:
        found[f"distance_{target}"] = [round(float(np.abs(z - target).mean()), 4) for z in heights]
        found[f"within_{target}"] = [round(float((np.abs(z - target) < BAND).mean()), 4) for z in heights]
        found[f"steps_within_{target}"] = [int((np.abs(z - target) < BAND).sum()) for z in heights]
    return found


def cell(arm: str, target: float, given: Given, seed: int, num: int) -> dict[str, Any]:
    """Run one arm with one seed."""
    steps = 20 if given.quick else None
    names = ("proposal.diffusion", "dynamics.diffusion", VALUE)
    parts: list[Any] = [fast(model(TASK, name, given.models, given.data, steps=steps)) for name in names]
    facts = known("Walker2d-v5")
    agent = Agent(
        *parts,
        objective=objective(arm, target, parts[2]),
        ended=None if facts is None else facts.ended,
        settings=settings_of(seed),
        num_robots=num,
    )
    before = agent.fingerprints()
    finished, row = episodes_of(TASK, agent, seed, num)
    found = measures(finished)
    shown = f"{row['shown']}, within 5 cm {np.mean(found[f'within_{target}']):.2f}, steps {np.mean(row['lengths']):.0f}"
    survived = [not each.terminated for each in finished]
    unchanged = agent.fingerprints() == before
    return {**row, **found, "survived": survived, "parameters_unchanged": unchanged, "shown": shown}


def summary(cells: Cells) -> dict[str, Any]:
    """Return distance, time within 5 cm, survival and return of each arm, with intervals over episodes."""
    found: dict[str, Any] = {}
    for target in TARGETS:
        for arm in ("value alone", *ARMS):
            rows = [row for row in cells.rows.values() if row["cell"] in ([arm, target], [arm, None])]
            if not rows:
                continue

            def over(field: str, rows: list[dict[str, Any]] = rows) -> dict[str, Any]:
                return interval([value for row in rows for value in row[field]])

            found[f"{target} {arm}"] = {
                "distance": over(f"distance_{target}"),
                "within_5cm": over(f"within_{target}"),
                "steps_within_5cm": over(f"steps_within_{target}"),
                "steps_survived": over("lengths"),
                "survived": over("survived"),
                "score": over("scores"),
                "parameters_unchanged": all(row["parameters_unchanged"] for row in rows),
            }
    return found


def main() -> None:
    """Run all cells that are missing and write the result."""
    given = flags("control_reward", __doc__)
    num, seeds = (2, SEEDS[:1]) if given.quick else (EPISODES, SEEDS)
    settings = {"task": TASK, "episodes": num, "targets": TARGETS, "band": BAND, "kappa": KAPPA}
    cells = Cells("control_reward", given, settings)
    wanted: list[tuple[str, float | None]] = [("value alone", None)]
    wanted += [(arm, target) for target in TARGETS for arm in ARMS]
    for seed in seeds:
        for arm, target in wanted:
            aim = TARGETS[1] if target is None else target

            def run(
                arm: str = arm, target: float | None = target, aim: float = aim, seed: int = seed
            ) -> dict[str, Any]:
                return {"cell": [arm, target], **cell(arm, aim, given, seed, num)}

            cells.run(f"{arm}/{target}/{seed}", run)
    cells.write(summary(cells), {TASK: cpu_seconds(TASK, given.models)})


if __name__ == "__main__":
    main()
