"""What a run ran on: versions, hardware, threads, and the revision of the code."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "numpy", "scipy", "safetensors", "tokenizers", "pydantic", "tyro")


def environment() -> dict[str, Any]:
    """Return versions, hardware, threads and the git revision of this code as plain JSON values."""
    return {
        "forethought": _version("forethought"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "hardware": hardware(),
        "threads": _threads(),
        "git": git_state(Path(__file__).resolve().parent),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def hardware() -> dict[str, Any]:
    """Return the processor's name, the cores this process may use, the memory in bytes and any accelerators."""
    return {
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerators": _accelerators(),
    }


def git_state(directory: Path) -> dict[str, Any]:
    """Return {"revision", "dirty"} of the checkout that tracks a directory; both None where there is none."""
    # An installed copy may lie inside somebody's own repository, whose revision says nothing about it.
    tracked = _git(directory, "ls-files", "--error-unmatch", ".")
    revision = _git(directory, "rev-parse", "HEAD") if tracked else None
    if revision is None:
        return {"revision": None, "dirty": None}
    status = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": None if status is None else bool(status)}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _threads() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    return {
        "torch": torch.get_num_threads() if torch is not None else None,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def _accelerators() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
