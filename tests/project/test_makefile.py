"""The two commands of a newcomer build what they need, from nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("command", "extras"), [("demo", ".[demo]"), ("test", ".[dev,"), ("check", ".[dev,")])
def test_a_command_makes_the_environment_first(command: str, extras: str, tmp_path: Path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    planned = subprocess.run(
        ["make", "-n", command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert planned.returncode == 0, planned.stderr
    assert "Circular" not in planned.stderr
    made, installed = planned.stdout.find("-m venv .venv"), planned.stdout.find(extras)
    assert 0 <= made < installed
