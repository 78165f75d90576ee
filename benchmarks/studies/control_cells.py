"""What the studies of control share: cells that are run once, policies of trained parts, and the result's file."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from control_models import TASKS
from numpy.typing import ArrayLike

from forethought.app.control.places import environment
from forethought.control.running import Finished, Policy, known, run_episodes
from forethought.core import files
from forethought.core.environment import environment as machine
from forethought.stats import mean_interval

RESULTS = Path(__file__).resolve().parents[1] / "results" / "studies"
SEEDS = (100, 101, 102)
"""Seeds of the episodes that are reported; settings were chosen on others (0 to 9)."""


@dataclass(frozen=True)
class Given:
    """The flags of a study."""

    models: Path
    data: Path
    out: Path
    quick: bool
    only: str


def flags(name: str, description: str | None) -> Given:
    """Read the flags that every study of control takes."""
    parser = argparse.ArgumentParser(prog=f"benchmarks/studies/{name}.py", description=description)
    parser.add_argument("--models", type=Path, required=True, help="the folder of trained models, made where missing")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the tasks' .npz files")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="the result file, gone on with")
    parser.add_argument("--quick", action="store_true", help="tiny, to its last line; needs --out and --models")
    parser.add_argument("--only", default="", help="run only cells whose key begins so")
    given = parser.parse_args()
    if given.quick and given.out.parent == RESULTS:
        parser.error("--quick writes no result of its own; give --out")
    torch.set_num_threads(1)
    return Given(given.models, given.data, given.out, given.quick, given.only)


class Cells:
    """The finished cells of a study, kept in its result file after each one; a finished cell is never run again."""

    def __init__(self, name: str, given: Given, settings: Mapping[str, Any]) -> None:
        self.name, self.given, self.settings = name, given, dict(settings)
        self.rows: dict[str, dict[str, Any]] = {}
        if given.out.exists():
            known_file = files.read_json(given.out, what="result of a study", limit=1 << 26)
            if known_file.get("settings") == files_json(self.settings):
                self.rows = {row["key"]: row for row in known_file["rows"]}
            else:
                sys.exit(f"{given.out} was made with other settings; move it away to begin anew")

    def run(self, key: str, cell: Callable[[], dict[str, Any]]) -> None:
        """Run a cell unless it is there or not asked for, and keep it."""
        if key in self.rows or not key.startswith(self.given.only):
            return
        began = time.process_time()
        row = cell()
        self.rows[key] = {"key": key, **row, "cpu_seconds": round(time.process_time() - began, 1)}
        self.write({})
        sys.stdout.write(f"{key}: {row.get('shown', '')} ({self.rows[key]['cpu_seconds']} s)\n")
        sys.stdout.flush()

    def write(self, summary: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> None:
        """Write the result file."""
        rows = [self.rows[key] for key in sorted(self.rows)]
        facts = machine()
        files.make_directory(self.given.out.parent)
        files.write_json(
            self.given.out,
            {
                "command": f"python benchmarks/studies/{self.name}.py --models MODELS --data DATA",
                "machine": {"hardware": facts["hardware"], "packages": facts["packages"], "threads": 1},
                "seeds": sorted({row["seed"] for row in rows if "seed" in row}),
                "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows), 1),
                "training_cpu_seconds": dict(training or {}),
                "settings": self.settings,
                "summary": dict(summary),
                "rows": rows,
            },
        )


def files_json(value: Any) -> Any:
    """Return a value as JSON gives it back: lists for tuples, texts for keys."""
    if isinstance(value, Mapping):
        return {str(key): files_json(part) for key, part in value.items()}
    return [files_json(part) for part in value] if isinstance(value, list | tuple) else value


def episodes_of(
    task: str, policy: Policy, seed: int, num: int, *, changes: tuple[str, ...] = ()
) -> tuple[list[Finished], dict[str, Any]]:
    """Run episodes of a task and return them with their row: returns, lengths, scores."""
    env_id = TASKS.get(task, task)
    finished = sorted(run_episodes(environment(env_id, changes), policy, num, seed=seed), key=lambda each: each.number)
    reference = known(env_id)
    returns = [round(each.total, 2) for each in finished]
    scores = [] if reference is None else [round(reference.score(total), 3) for total in returns]
    row = {
        "seed": seed,
        "env_id": env_id,
        "returns": returns,
        "lengths": [len(each.actions) for each in finished],
        "scores": scores,
        "shown": f"score {np.mean(scores):.1f}, return {np.mean(returns):.0f}",
    }
    return finished, row


def interval(values: ArrayLike) -> dict[str, Any]:
    """Return mean, 95 % interval and number of values."""
    array = np.asarray(values, np.float64).ravel()
    found = mean_interval(array)
    return {"mean": round(found.estimate, 3), "interval": [round(found.low, 3), round(found.high, 3)], "n": len(array)}


def joined(rows: Sequence[Mapping[str, Any]], field: str) -> list[float]:
    """Return a field of several rows as one list, in the order of their seeds."""
    return [value for row in sorted(rows, key=lambda row: row["seed"]) for value in row[field]]
