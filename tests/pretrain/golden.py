"""The golden loss curve of a small fit; `python -m tests.pretrain.golden` writes it anew.

Bits are compared only where torch, its threads and the processor (model and instruction sets) are those of the file.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from forethought.pretrain import fit
from tests.app.workshop import small_config, small_text

GOLDEN = Path(__file__).parent / "golden_losses.json"


def losses_of(run: Path) -> list[float]:
    """Return the training losses of a run."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "train"]


def made_on(run: Path) -> dict[str, object]:
    """Return what decides the bits of a run."""
    environment = json.loads((run / "environment.json").read_text())
    return {
        "torch": environment["packages"]["torch"],
        "threads": environment["threads"]["torch"],
        "processor": environment["hardware"]["processor"],
        "instructions": _instructions(),
    }


def _instructions() -> str:
    names = ("cpu family", "model\t", "stepping", "flags")
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    first = sorted({line for line in lines if line.startswith(names)})
    return hashlib.sha256("\n".join(first).encode()).hexdigest()[:16]


def main() -> None:
    """Fit, and write the losses as exact hexadecimal numbers."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        fit(small_config(small_text(place / "text.jsonl")), place / "run", recipe="golden")
        record = {"made_on": made_on(place / "run"), "losses": [loss.hex() for loss in losses_of(place / "run")]}
    GOLDEN.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
