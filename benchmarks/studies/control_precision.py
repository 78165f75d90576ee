"""What planning in bfloat16 costs: actions, states and choices against those of fp32 from the same noise.

    python benchmarks/studies/control_precision.py --models DIR --data DIR

The models are those of control_models.py (Hopper). For states of the data, drawn by seed, both plans are made from the
same noise; a choice is judged by what fp32 makes of it, in standard deviations of the candidates' scores. Arms:
proposal and dynamics narrow (what `AgentConfig(precision="bfloat16")` does), and the value narrow too.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forethought.control import load_model
from forethought.control.situation import Situation
from forethought.core import files
from forethought.core.environment import environment
from forethought.core.rng import generator, torch_generator
from forethought.data.episodes import read_npz
from forethought.plan import Candidates
from forethought.stats import mean_interval

OUT = Path(__file__).resolve().parents[1] / "results" / "studies" / "control_precision.json"
TASK, SAMPLES, SEEDS, STATES = "hopper-medium", 64, (0, 1, 2), 100
PARTS = ("proposal.diffusion", "dynamics.diffusion", "value.state")
NARROW = {"proposal and dynamics": (True, True, False), "value too": (True, True, True)}


def compared(models: list[Any], narrow: tuple[bool, ...], state_O: Any, seed: int, number: int) -> dict[str, float]:
    """Return how a narrow plan for one state differs from the plan of fp32."""
    start = Situation.first(torch.from_numpy(state_O[None]), models[0].body.act_dim, 0)
    types = [torch.bfloat16 if each else torch.float32 for each in narrow]
    rho, dynamics, value = models
    rough = [model.with_precision(dtype) for model, dtype in zip(models, types, strict=True)]

    def plan(parts: list[Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        actions = parts[0](start, SAMPLES, torch_generator(seed, "study.precision", number))
        states = parts[1](start, actions)
        return actions, states, parts[2](Candidates(start, actions, states))[0]

    actions, states, scores = plan(models)
    other_actions, other_states, other_scores = plan(rough)
    # What the narrow plan's choice is really worth: its own actions, judged in fp32.
    judged = value(Candidates(start, other_actions, dynamics(start, other_actions)))[0]
    pick = int(other_scores.argmax())
    return {
        "action_error": float(((other_actions - actions) / rho.action.scale).square().mean().sqrt()),
        "state_error": float(((other_states - states) / dynamics.observation.scale).square().mean().sqrt()),
        "same_pick": float(pick == int(scores.argmax())),
        "regret": float((scores.max() - judged[pick]) / scores.std()),
    }


def main() -> None:
    """Read the flags, compare, and write the result."""
    parser = argparse.ArgumentParser(prog="benchmarks/studies/control_precision.py", description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="tiny; give --out")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    if given.quick and given.out == OUT:
        parser.error("--quick writes no result of its own; give --out")
    torch.set_num_threads(1)
    began = time.process_time()
    models = [load_model(given.models / TASK / part / "model") for part in PARTS]
    observations = np.asarray(read_npz(given.data / f"{TASK}.npz").observations, np.float32)
    rows: list[dict[str, Any]] = []
    for seed in SEEDS:
        chosen = generator(seed, "study.states").permutation(len(observations))[: 2 if given.quick else STATES]
        for arm, narrow in NARROW.items():
            found = [compared(models, narrow, observations[index], seed, int(index)) for index in chosen]
            rows += [{"arm": arm, "seed": seed, **each} for each in found]
    facts = environment()
    record = {
        "command": "python benchmarks/studies/control_precision.py --models DIR --data DIR",
        "machine": {**facts["hardware"], "python": facts["python"], **facts["packages"]},
        "seeds": list(SEEDS),
        "cpu_seconds": round(time.process_time() - began, 1),
        "settings": {"task": TASK, "samples": SAMPLES, "states": STATES, "model": [m.fingerprint() for m in models]},
        "rows": rows,
        "summary": {arm: _figures([row for row in rows if row["arm"] == arm]) for arm in NARROW},
    }
    files.make_directory(given.out.parent)
    files.write_json(given.out, record)


def _figures(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    names = ("action_error", "state_error", "same_pick", "regret")
    intervals = {name: mean_interval([row[name] for row in rows]) for name in names}
    return {name: [each.estimate, each.low, each.high] for name, each in intervals.items()}


if __name__ == "__main__":
    main()
