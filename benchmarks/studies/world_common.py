"""What the studies of the world room share: cells that are never run twice, and the file that they are kept in."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forethought.core import files
from forethought.core.environment import environment

STUDIES = Path(__file__).resolve().parents[1] / "results" / "studies"
Row = dict[str, Any]


@dataclass
class Study:
    """The rows of a study so far, on disk after every cell."""

    path: Path
    name: str
    settings: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.rows = files.read_json(self.path, what="study")["rows"]

    def has(self, key: Mapping[str, Any]) -> bool:
        """Say whether a cell was run."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def cell(self, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> None:
        """Run a cell and write its row, unless it is there."""
        if self.has(key):
            return
        began = time.process_time()
        row = {**key, **make()}
        self.rows.append({"cpu_seconds": round(time.process_time() - began, 1), **row})
        self.write({})

    def write(self, summary: Mapping[str, Any]) -> None:
        """Write the file as it stands."""
        facts = environment()
        seeds = {seed for row in self.rows for seed in row.get("seeds", [row["seed"]] if "seed" in row else [])}
        record = {
            "command": f"python benchmarks/studies/{self.name}.py",
            "machine": {
                **facts["hardware"],
                "python": facts["python"],
                **facts["packages"],
                "threads": facts["threads"],
            },
            "seeds": sorted(seeds),
            "cpu_seconds": round(sum(row["cpu_seconds"] for row in self.rows), 1),
            "settings": dict(self.settings),
            "rows": self.rows,
            "summary": dict(summary),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(record, indent=2) + "\n")


def open_study(
    name: str, description: str, settings: Callable[[bool], Any], *, flags: Mapping[str, str] | None = None
) -> tuple[Study, Path, Any, argparse.Namespace]:
    """Read --quick, --out, --work and more flags; return the study, the folder of runs, the settings, and the flags."""
    parser = argparse.ArgumentParser(prog=f"benchmarks/studies/{name}.py", description=description)
    parser.add_argument("--quick", action="store_true", help="a minute, tiny; writes only to --out")
    parser.add_argument("--out", type=Path, help="the JSON file to write or go on with")
    parser.add_argument("--work", type=Path, help="where data and runs are kept")
    for flag, text in (flags or {}).items():
        parser.add_argument(f"--{flag}", action="store_true", help=text)
    given = parser.parse_args()
    if given.quick and given.out is None:
        parser.error("--quick writes only to --out; give a file")
    chosen = settings(given.quick)
    work = given.work or Path("runs") / (f"{name}-quick" if given.quick else name)
    study = Study(given.out or STUDIES / f"{name}.json", name, vars(chosen) | {"quick": given.quick})
    return study, work, chosen, given
