"""How long a person waits for the library to start: import, help, and what torch adds, in fresh processes."""

from __future__ import annotations

import subprocess
import sys
import time

from forethought.stats import median_interval
from harness import run_benchmark

PROBES = {
    "python": [sys.executable, "-c", "pass"],
    "import": [sys.executable, "-c", "import forethought"],
    "help": [sys.executable, "-m", "forethought", "--help"],
    "import_torch": [sys.executable, "-c", "import torch"],
}
WITHOUT_TORCH = "import sys; import forethought; from forethought.app.cli import main; main(['--help'])"


def measure(quick: bool) -> dict[str, object]:
    """Start each probe in turn and report medians with intervals, in seconds; import is net of Python's own start."""
    rounds = 5 if quick else 15
    seconds: dict[str, list[float]] = {name: [] for name in PROBES}
    for number in range(rounds + 1):
        for name, command in PROBES.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if number:
                seconds[name].append(time.perf_counter() - started)
    figures: dict[str, object] = {}
    for name, values in seconds.items():
        middle = median_interval(values)
        figures |= {f"{name}_seconds": middle.estimate, f"{name}_low": middle.low, f"{name}_high": middle.high}
    net = [i - p for i, p in zip(seconds["import"], seconds["python"], strict=True)]
    figures["import_net_seconds"] = median_interval(net).estimate
    probe = f"{WITHOUT_TORCH}; sys.exit('torch' in sys.modules)"
    figures["help_imports_torch"] = bool(subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode)
    return figures


if __name__ == "__main__":
    run_benchmark("startup", measure)
