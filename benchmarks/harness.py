"""What every benchmark shares: --quick and --json, a table for people, and a JSON file that says what it ran on.

A benchmark is a function from `quick` to a flat dictionary of figures. Its full form writes results/NAME.json with
hardware, versions, revision and command; --quick writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from forethought.core.environment import environment

RESULTS = Path(__file__).resolve().parent / "results"
Figures = Mapping[str, object]


def run_benchmark(name: str, measure: Callable[[bool], Figures]) -> None:
    """Read the flags, measure, print the figures, and write the result of a full run."""
    parser = argparse.ArgumentParser(prog=f"benchmarks/{name}.py", description=measure.__doc__)
    parser.add_argument("--quick", action="store_true", help="at most 50 s; writes no result file")
    parser.add_argument("--json", action="store_true", help="print the figures as one last line on standard output")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    figures = {**measure(given.quick), "load_before": round(load, 2)}
    width = max(len(key) for key in figures)
    stream = sys.stderr if given.json else sys.stdout
    for key, value in figures.items():
        shown = f"{value:,.4g}" if isinstance(value, float) else value
        print(f"{key.ljust(width)}  {shown}", file=stream)
    if not given.quick:
        write_result(name, figures)
    if given.json:
        print(json.dumps(figures))


def _code_is_dirty() -> bool | None:
    """Say whether the code that was measured differs from the revision; results of other benchmarks do not count."""
    places = ["src", "benchmarks", ":!benchmarks/results"]
    command = ["git", "status", "--porcelain", "--", *places]
    done = subprocess.run(command, cwd=RESULTS.parent.parent, capture_output=True, text=True, check=False)
    return bool(done.stdout.strip()) if done.returncode == 0 else None


def write_result(name: str, figures: Figures) -> None:
    """Write results/NAME.json: the figures and everything that a reader needs to judge them."""
    facts = environment()
    record = {
        "benchmark": name,
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python benchmarks/{name}.py",
        "hardware": facts["hardware"],
        "versions": {"python": facts["python"], **facts["packages"]},
        "threads": facts["threads"],
        "revision": {**facts["git"], "dirty": _code_is_dirty()},
        "figures": dict(figures),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
