"""What the studies of certify share: a cell is one `forethought certify run`, then `certify verify` in a fresh process.

Cells are rows of the study's JSON file and are never run twice; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forethought.core import files
from forethought.core.environment import environment
from forethought.stats import mean_interval

STUDIES = Path(__file__).resolve().parents[1] / "results" / "studies"
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
Row = dict[str, Any]


@dataclass
class Study:
    """The file of a study: its rows so far, and the facts that a reader needs to judge them."""

    path: Path
    name: str
    settings: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._read()

    def cell(self, key: Mapping[str, Any], make: Callable[[], Row]) -> Row:
        """Return the row of a key, made and written now unless it is there."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        row = {**key, **make()}
        self._read()  # another process may have added rows meanwhile
        self.rows.append(row)
        self.write({})
        return row

    def _read(self) -> None:
        if self.path.exists():
            self.rows = files.read_json(self.path, what="study")["rows"]

    def write(self, summary: Mapping[str, Any]) -> None:
        """Write the file as it stands."""
        facts = environment()
        record = {
            "command": f"python benchmarks/studies/{self.name}.py",
            "machine": {**facts["hardware"], "python": facts["python"], **facts["packages"], "threads": 1},
            "seeds": sorted({row["seed"] for row in self.rows if "seed" in row}),
            "cpu_seconds": round(sum(row.get("cpu_seconds", 0.0) for row in self.rows), 1),
            "settings": dict(self.settings),
            "rows": self.rows,
            "summary": dict(summary),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(record, indent=2) + "\n")


def certified_row(flags: Sequence[str], out: Path, data: str) -> Row:
    """Run `certify run` on one thread, verify in a fresh process, and return the figures of both."""
    _forethought(["certify", "run", *flags, "--out", str(out), "--exists", "resume"], out)
    result = files.read_json(out / "result.json", what="result")
    began = _child_seconds()
    checked = _forethought(["certify", "verify", str(out / "certificate"), "--data", data, "--json"], None)
    verified = json.loads(checked.splitlines()[-1])
    row: Row = {name: result[name] for name in ("bound", "vacuous", "train_risk", "n", "trivial", "bits", "delta")}
    row |= {name: result[name] for name in ("bounds", "message_bytes", "prior_sha256") if name in result}
    row |= {name: result[name] for name in ("test_loss", "test_n", "trigram_loss", "unigram_loss") if name in result}
    if result.get("holdout"):
        row["holdout"] = result["holdout"]
    row["cpu_seconds"] = spent(out)
    row["verified"] = verified["bound"] == result["bound"]
    row["verify_cpu_seconds"] = round(_child_seconds() - began, 2)
    return row


def spent(out: Path) -> float:
    """Return the CPU seconds of all runs in a directory, interrupted ones included."""
    path = out.with_suffix(".cpu.json")
    return float(files.read_json(path, what="cost")["cpu_seconds"]) if path.exists() else 0.0


def summarise(rows: Sequence[Row], names: Sequence[str]) -> Row:
    """Return mean, 95 % interval (Student's t over seeds) and range of figures."""
    summary: Row = {"num_seeds": len(rows)}
    for name in names:
        values = np.array([_value(row, name) for row in rows], dtype=float)
        summary[name] = {"mean": float(values.mean()), "low": float(values.min()), "high": float(values.max())}
        if len(values) > 1:
            interval = mean_interval(values)
            summary[name] |= {"interval": [interval.low, interval.high]}
    return summary


def arguments(description: str) -> argparse.Namespace:
    """Return the flags of a study: where runs go, and the quick form."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", type=Path, default=Path("runs/studies"), help="folder of the runs; resumed")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data")
    parser.add_argument("--quick", action="store_true", help="tiny, in a minute; writes only to --out")
    parser.add_argument("--out", type=Path, help="result file; default: the study's own")
    parser.add_argument("--only", help="part of the study to run")
    given = parser.parse_args()
    if given.quick and given.out is None:
        parser.error("--quick writes only to --out FILE")
    return given


def _value(row: Row, name: str) -> float:
    value: Any = row
    for part in name.split("."):
        value = value[part]
    return float(value)


def _forethought(flags: Sequence[str], out: Path | None) -> str:
    began = _child_seconds()
    # An interrupt is the child's: it saves what it has, its cost is noted, and the next call goes on.
    signal.signal(signal.SIGINT, lambda *_: None)
    done = subprocess.run(
        [sys.executable, "-m", "forethought", *flags],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    if out is not None:
        total = spent(out) + _child_seconds() - began
        files.write_json(out.with_suffix(".cpu.json"), {"cpu_seconds": round(total, 1)})
    if done.returncode:
        raise SystemExit(f"forethought {' '.join(flags)} ended with status {done.returncode}")
    return done.stdout


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
