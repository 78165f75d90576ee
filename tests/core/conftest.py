"""Fixtures of the core tests: the fork server of tests/crash, and a disk as a later process would find it."""

from __future__ import annotations

import os
import runpy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from forethought.core import files, litter

CRASH = Path(__file__).resolve().parent.parent / "crash"


@pytest.fixture(scope="session")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The fork server: `lives.run(program, kill_at=..., ...)`."""
    server = runpy.run_path(str(CRASH / "client.py"))["Lives"](tmp_path_factory.mktemp("lives") / "log")
    yield server
    server.close()


@pytest.fixture
def ram_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where the system has one: a kill cannot tell it from a disk, and fsync is free there."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="forethought-test-") as place:
        yield Path(place)


@pytest.fixture
def restart() -> Callable[[Path], list[str]]:
    """Sweep a directory as a later process would, and return the hidden names that are left."""

    def sweep(directory: Path) -> list[str]:
        with mock.patch.object(litter, "_LIFE", "----"):
            files.sweep(directory)
        names = sorted(entry.name for entry in directory.iterdir())
        return [name for name in names if name.startswith(".") and name != ".lock"]

    return sweep
