"""Power loss (R17): whatever a disk may hold after it, the last acknowledged checkpoint is found whole."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from forethought.core import files, litter
from forethought.core import run as run_module
from forethought.core.errors import ForethoughtError
from forethought.core.rng import generator
from forethought.core.run import Run

CRASH = Path(__file__).resolve().parent.parent / "crash"
SYSCALLS = runpy.run_path(str(CRASH / "syscalls.py"))
DISK = runpy.run_path(str(CRASH / "disk.py"))
PROGRAMS = runpy.run_path(str(CRASH / "programs.py"))
groups, read_step, Settings = PROGRAMS["groups"], PROGRAMS["read_step"], PROGRAMS["Settings"]


def record_run(root: Path, disk: Any, last: int) -> None:
    """Train in miniature: log, vouch, save, acknowledge; from the third checkpoint on one is pruned."""
    with (
        mock.patch.object(run_module, "environment", dict),
        SYSCALLS["watched"](SYSCALLS["under"](root, disk)),
        Run.open(root / "runs" / "one", config=Settings(), recipe="r") as run,
    ):
        files.make_directory(run.checkpoints.directory)
        for step in range(1, last + 1):
            run.log({"step": step}, timing={"seconds": step})
            run.checkpoints.save(step, groups(step, 2), {"note": step, "position": run.position()})
            disk.acknowledge(step)


def recover(root: Path, acknowledged: int, last: int) -> None:
    """Start again on what the disk holds; raise AssertionError or ForethoughtError if anything safe was lost."""
    with (
        mock.patch.object(run_module, "environment", dict),
        mock.patch.object(litter, "_LIFE", "----"),
        Run.open(root / "runs" / "one", config=Settings(), recipe="r", exists="resume") as run,
    ):
        step = read_step(run.checkpoints) if run.checkpoints.steps() else 0
        assert acknowledged <= step <= last
        for held in run.checkpoints.steps():
            run.checkpoints.load(held)
        found = run.checkpoints.latest()
        run.rewind({} if found is None else found.state["position"])
        assert run.metrics() == [{"step": s} for s in range(1, step + 1)]


def losses(place: Path, limit: int, *plants: str, last: int = 3) -> tuple[int, list[str]]:
    """Replay power loss at every moment; return the number of states and what was lost in which."""
    root = place / "recorded"
    root.mkdir()
    disk = DISK["Disk"](root)
    disk.lose_syncs_of(*plants)
    record_run(root, disk, last)
    problems: list[str] = []
    count = 0
    for acknowledged, tree in disk.states(limit, generator(8, "test.power")):
        count += 1
        replayed = place / "replayed"
        DISK["write_tree"](tree, replayed)
        try:
            recover(replayed, acknowledged, last)
        except (AssertionError, ForethoughtError) as error:
            problems.append(f"after {acknowledged}: {error}")
        shutil.rmtree(replayed)
    return count, problems


@pytest.mark.parametrize(
    ("last", "limit", "least"), [(3, 300, 150), pytest.param(12, 10_000, 1_000, marks=pytest.mark.nightly)]
)
def test_power_loss_at_any_moment_loses_nothing_that_was_acknowledged(
    ram_path: Path, last: int, limit: int, least: int
) -> None:
    count, problems = losses(ram_path, limit, last=last)
    assert problems == []
    assert count >= least


@pytest.mark.parametrize("plant", ["directory", "file"])
def test_the_power_loss_test_notices_a_missing_fsync(ram_path: Path, plant: str) -> None:
    assert losses(ram_path, 200, plant)[1] != []


def test_the_power_loss_test_notices_a_rename_before_the_fsync(ram_path: Path) -> None:
    rename = files._rename_onto

    def hasty_seal(_staging: Path) -> None:
        return None

    def hasty_rename(staging: Path, target: Path, *, replace: bool) -> None:
        facts = {p.name: {"bytes": p.stat().st_size, "sha256": files.sha256_file(p)} for p in staging.iterdir()}
        with files.open_write(staging / files.MANIFEST) as out:
            out.write(files._manifest_bytes(facts))
        rename(staging, target, replace=replace)
        files.fsync_directory(target)

    with mock.patch.multiple(files, _seal=hasty_seal, _rename_onto=hasty_rename):
        assert losses(ram_path, 400)[1] != []
