"""The phenomena at their full budget, one row each: what was expected, its margin with an interval, what it cost.

    python benchmarks/studies/certify_phenomena.py [--only NAME ...] [--quick --out FILE]

A row is the call behind `forethought certify phenomena NAME --budget full`: seeds are paired within a phenomenon, and a
claim holds where the 95 % interval (Student's t) of its margin is above 0. A finished row is not measured again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from forethought.certify.phenomena import PHENOMENA
from forethought.core import files
from forethought.core.environment import environment

NAME = "certify_phenomena"
RESULT = Path(__file__).resolve().parents[1] / "results" / "studies" / f"{NAME}.json"
Row = dict[str, Any]


def row_of(name: str, budget: Any) -> Row:
    """Measure one phenomenon and return its figures; its curves are in the report, and are left out."""
    started = time.process_time()
    outcome = PHENOMENA[name](budget, 0).to_dict()
    kept = {key: outcome[key] for key in ("title", "settings", "tables", "holds")}
    return {"phenomenon": name, "budget": budget, "cpu_seconds": round(time.process_time() - started, 1), **kept}


def write(path: Path, rows: list[Row]) -> None:
    """Write the study as it stands, with a summary of what held."""
    facts = environment()
    held = {row["phenomenon"]: all(row["holds"].values()) for row in rows}
    failed = {row["phenomenon"]: [name for name, ok in row["holds"].items() if not ok] for row in rows}
    record = {
        "command": f"python benchmarks/studies/{NAME}.py",
        "machine": {**facts["hardware"], "python": facts["python"], **facts["packages"], "threads": 1},
        "seeds": sorted({seed for row in rows for seed in range(int(row["settings"].get("seeds", 1)))}),
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows), 1),
        "settings": {"budget": rows[0]["budget"] if rows else "", "interval": "95 %, Student's t over paired seeds"},
        "rows": rows,
        "summary": {"held": held, "did_not": {name: claims for name, claims in failed.items() if claims}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, record)


def main() -> None:
    """Measure what is missing, and write after every phenomenon."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--only", nargs="*", choices=list(PHENOMENA), default=list(PHENOMENA))
    parser.add_argument("--quick", action="store_true", help="the smoke forms, about a minute; needs --out")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    if given.quick and given.out is None:
        parser.error("--quick writes only to --out")
    torch.set_num_threads(1)
    path, budget = given.out or RESULT, "smoke" if given.quick else "full"
    rows: list[Row] = files.read_json(path, what="study")["rows"] if path.exists() else []
    for name in given.only:
        if all(row["phenomenon"] != name for row in rows):
            rows.append(row_of(name, budget))
            rows.sort(key=lambda row: list(PHENOMENA).index(row["phenomenon"]))
            write(path, rows)
            print(name, rows[[row["phenomenon"] for row in rows].index(name)]["cpu_seconds"], flush=True)


if __name__ == "__main__":
    main()
