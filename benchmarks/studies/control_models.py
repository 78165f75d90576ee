"""The trained models that the studies of control share: each part of each task is trained once, in a folder of its own.

    python benchmarks/studies/control_models.py hopper-medium --models DIR --data DIR

The data is made for this project by running trained agents in Gymnasium; it is not D4RL.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from forethought.control import (
    AgentTraining,
    Body,
    ControlModel,
    Data,
    PartConfig,
    body_of,
    fit_part,
    load_model,
    preset,
)
from forethought.control.training.agent import split
from forethought.core import files
from forethought.data.episodes import Episodes, read_npz

TASKS = {
    "hopper-medium": "Hopper-v5",
    "halfcheetah-medium": "HalfCheetah-v5",
    "walker2d-medium": "Walker2d-v5",
    "walker2d-mixed": "Walker2d-v5",
}
PARTS = (
    "proposal.diffusion",
    "dynamics.diffusion",
    "dynamics.one-step",
    "policy.cloning",
    "value.state",
    "joint.diffusion",
)
STEPS = {"proposal": 4000, "dynamics": 4000, "joint": 4000, "one_step": 2500, "policy": 2500, "value": 2500}
SEED = 0
COST = "cpu_seconds.json"


def training(steps: int | None = None) -> AgentTraining:
    """Return the settings of every part: the preset `cpu` with fewer steps; `steps` of each for a quick run."""
    made = preset("cpu")
    parts = {}
    for name, number in STEPS.items():
        part: PartConfig = getattr(made, name)
        parts[name] = replace(
            part, loop=replace(part.loop, steps=steps or number, checkpoint_every=0, precision="bf16")
        )
    return replace(made, **parts)


def open_data(task: str, data: Path) -> tuple[Episodes, Body, Data]:
    """Return a task's episodes, its body, and its training and held-out episodes."""
    episodes = read_npz(data / f"{task}.npz")
    return episodes, body_of(episodes), split(episodes, training())


def model(task: str, part: str, models: Path, data: Path, *, steps: int | None = None) -> ControlModel:
    """Return a trained part, which is trained where the folder does not hold it yet."""
    out = models / task / part
    if (out / COST).exists():
        return load_model(out / "model")
    _, body, parts = open_data(task, data)
    began, spent = time.process_time(), models / task / f"{part}.spent"
    before = float(spent.read_text()) if spent.exists() else 0.0
    try:
        made = fit_part(part, training(steps).of(part), parts, body, out, seed=SEED, exists="resume")
    finally:
        # What an interrupted training took counts too.
        before += time.process_time() - began
        spent.write_text(str(before))
    files.write_json(out / COST, {"cpu_seconds": round(before, 1)})
    return made


def cpu_seconds(task: str, models: Path) -> dict[str, float]:
    """Return what the training of each part of a task took."""
    found = sorted((models / task).glob(f"*/{COST}"))
    return {path.parent.name: files.read_json(path, what="cost of training")["cpu_seconds"] for path in found}


def main() -> None:
    """Train the parts of tasks."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("tasks", nargs="+", choices=sorted(TASKS))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=None)
    given = parser.parse_args()
    for task in given.tasks:
        for part in given.parts.split(","):
            model(task, part, given.models, given.data, steps=given.steps)


if __name__ == "__main__":
    main()
