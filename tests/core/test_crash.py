"""Kill, failing calls, a full disk, flipped bytes and power loss: what a checkpoint survives (R14 to R18)."""

from __future__ import annotations

import contextlib
import errno
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from forethought.core import files, litter
from forethought.core import run as run_module
from forethought.core.checkpoint import CheckpointStore
from forethought.core.errors import CheckpointError, ForethoughtError, StorageError
from forethought.core.faults import faults
from forethought.core.rng import generator
from forethought.core.run import Run

CRASH = Path(__file__).resolve().parent.parent / "crash"
SYSCALLS = runpy.run_path(str(CRASH / "syscalls.py"))
PROGRAMS = runpy.run_path(str(CRASH / "programs.py"))
groups, read_step, Settings = PROGRAMS["groups"], PROGRAMS["read_step"], PROGRAMS["Settings"]


@pytest.fixture
def base(ram_path: Path) -> Path:
    """A directory with two checkpoints, so that the next save also prunes."""
    store = CheckpointStore(ram_path / "base")
    for step in (1, 2):
        store.save(step, groups(step), {"note": step})
    return ram_path / "base"


def kills(lives: Any, base: Path, restart: Any, *, mutant: str = "") -> list[str]:
    """Kill a save at every point that it announces and return what went wrong where."""
    place = base.parent / "killed"
    shutil.copytree(base, place)
    points = lives.run("save", directory=str(place), steps=[3], mutant=mutant)["result"]
    assert "file.fsync" in points
    problems: list[str] = []
    for number, point in enumerate(points, start=1):
        shutil.rmtree(place)
        shutil.copytree(base, place)
        assert lives.run("save", directory=str(place), steps=[3], mutant=mutant, kill_at=number)["signal"] == 9
        try:
            litter_left = restart(place)
            assert read_step(CheckpointStore(place)) in (2, 3)
            assert litter_left == []
            CheckpointStore(place).save(3, groups(3), {"note": 3})
            assert read_step(CheckpointStore(place)) == 3
        except (AssertionError, ForethoughtError) as error:
            problems.append(f"{number} {point}: {error}")
    return problems


def test_a_kill_at_every_announced_point_of_save_leaves_the_old_state_or_the_new(
    lives: Any, base: Path, restart: Any
) -> None:
    assert kills(lives, base, restart) == []


def test_the_kill_test_notices_a_save_that_writes_in_place(lives: Any, base: Path, restart: Any) -> None:
    assert kills(lives, base, restart, mutant="direct") != []


@pytest.mark.parametrize("mutant", ["", "remove"])
def test_a_kill_at_every_point_of_a_replacement_leaves_one_whole_version(
    lives: Any, ram_path: Path, restart: Any, mutant: str
) -> None:
    target = ram_path / "place" / "thing"
    lives.run("republish", target=str(target), version=1)
    points = lives.run("republish", target=str(target), version=1, mutant=mutant)["result"]
    problems: list[str] = []
    for number, point in enumerate(points, start=1):
        shutil.rmtree(target.parent)
        files.publish(target, dict.fromkeys(("a", "sub/b", "c"), b"1"))
        assert lives.run("republish", target=str(target), version=2, mutant=mutant, kill_at=number)["signal"] == 9
        left = restart(target.parent)
        try:
            files.verify(target)
            assert len({(target / name).read_bytes() for name in ("a", "sub/b", "c")}) == 1
            assert left == []
        except (AssertionError, CheckpointError) as error:
            problems.append(f"{number} {point}: {error}")
    assert bool(problems) == bool(mutant), problems


def random_kills(lives: Any, place: Path, restart: Any, count: int, *, mutant: str = "") -> tuple[int, int]:
    """Kill a tight save loop at random moments; return how many kills left nothing usable, and how many a mixture."""
    chooser = generator(5, "test.kills")
    unusable = torn = 0
    last = 0
    for _ in range(count):
        delay = float(chooser.uniform(0.002, 0.06))
        lives.run("save_for_ever", directory=str(place), first=last + 1, kill_after=delay, mutant=mutant)
        store = CheckpointStore(place)
        if not place.exists():
            continue
        restart(place)
        try:
            reached = read_step(store) if store.steps() else 0
        except CheckpointError:
            unusable += 1
            reached = max(store.steps())
        except AssertionError:
            torn += 1
            reached = max(store.steps())
        assert reached >= last, "an acknowledged checkpoint was lost"
        last = reached
    return unusable, torn


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.nightly)])
def test_random_kills_of_a_tight_save_loop_leave_nothing_unusable_and_nothing_torn(
    lives: Any, ram_path: Path, restart: Any, count: int
) -> None:
    place = ram_path / "loop"
    assert random_kills(lives, place, restart, count) == (0, 0)
    assert len(CheckpointStore(place).steps()) >= 1, "no life lived long enough to save"
    assert len(list(place.iterdir())) <= 4


@pytest.mark.nightly
def test_the_random_kills_notice_a_save_that_writes_in_place(lives: Any, ram_path: Path, restart: Any) -> None:
    assert sum(random_kills(lives, ram_path / "loop", restart, 60, mutant="direct")) > 0


def fail_each_call(base: Path, restart: Any, error: int, save: Callable[[CheckpointStore], Any]) -> int:
    """Make the 1st, 2nd, ... disk call of a save fail, each on a fresh copy, until it passes; return how many did."""
    for number in range(1, 500):
        place = base.parent / f"failing{number}"
        shutil.copytree(base, place)
        hook, calls = SYSCALLS["failing"](number, error)
        store = CheckpointStore(place)
        failure: StorageError | None = None
        with SYSCALLS["watched"](SYSCALLS["under"](place, hook)):
            try:
                save(store)
            except StorageError as raised:
                failure = raised
        assert failure is None or ("Free space" in str(failure) and str(place) in str(failure))
        assert read_step(store) in (2, 3)
        assert failure is not None or read_step(store) == 3
        assert restart(place) == []
        store.save(3, groups(3), {"note": 3})
        assert read_step(store) == 3
        shutil.rmtree(place)
        if len(calls) < number:
            return number - 1
    raise AssertionError("the save never passed")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EINTR], ids=["ENOSPC", "EIO", "EINTR"])
def test_any_failing_disk_call_of_a_save_is_one_clear_error_and_the_checkpoints_before_stay(
    base: Path, restart: Any, error: int
) -> None:
    assert fail_each_call(base, restart, error, lambda store: store.save(3, groups(3), {"note": 3})) >= 20


def test_the_failing_calls_notice_a_save_that_swallows_errors(base: Path, restart: Any) -> None:
    def careless(store: CheckpointStore) -> None:
        with contextlib.suppress(OSError):
            store.save(3, groups(3), {"note": 3})

    with pytest.raises(AssertionError):
        fail_each_call(base, restart, errno.ENOSPC, careless)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EINTR], ids=["ENOSPC", "EIO", "EINTR"])
def test_any_failing_call_of_a_run_is_a_storage_error_and_the_run_resumes(ram_path: Path, error: int) -> None:
    def work(directory: Path) -> None:
        with Run.open(directory, config=Settings(), recipe="r", exists="resume") as run:
            run.rewind({})
            run.log({"step": 1}, timing={"seconds": 1.0})
            run.checkpoints.save(1, groups(1, 4), {"note": 1, "position": run.position()})
            run.write_result({"loss": 1.0})

    for number in range(1, 500):
        directory = ram_path / f"run{number}"
        hook, calls = SYSCALLS["failing"](number, error)
        with (
            mock.patch.object(run_module, "environment", dict),
            SYSCALLS["watched"](SYSCALLS["under"](directory, hook)),
            contextlib.suppress(StorageError),
        ):
            work(directory)
        with mock.patch.object(run_module, "environment", dict), mock.patch.object(litter, "_LIFE", "----"):
            work(directory)
        assert [entry.name for entry in directory.iterdir() if entry.name.startswith(".")] == [".lock"]
        assert run_module.open_run(directory)["metrics"] == [{"step": 1}]
        if len(calls) < number:
            break
    assert number > 40


def test_every_named_fault_point_that_raises_is_a_storage_error(base: Path, restart: Any) -> None:
    seen: list[str] = []
    with faults(seen.append):
        CheckpointStore(shutil.copytree(base, base.parent / "seen")).save(3, groups(3), {"note": 3})
    for point in sorted(set(seen)):
        place = shutil.copytree(base, base.parent / point)

        def refuse(name: str, wanted: str = point) -> None:
            if name == wanted:
                raise OSError(errno.ENOSPC, "No space left on device")

        with faults(refuse), pytest.raises(OSError, match="No space left"):
            CheckpointStore(place).save(3, groups(3), {"note": 3})
        assert read_step(CheckpointStore(place)) in (2, 3)
        assert restart(place) == []


def test_a_failed_replacement_puts_the_old_version_back_at_once(tmp_path: Path) -> None:
    files.publish(tmp_path / "thing", {"a": b"1"})

    def refuse(point: str) -> None:
        if point == "publish.rename":
            raise OSError(errno.EIO, "Input/output error")

    with faults(refuse), pytest.raises(StorageError, match="Input/output"):
        files.publish(tmp_path / "thing", {"a": b"2"}, replace=True)
    files.verify(tmp_path / "thing")
    assert (tmp_path / "thing" / "a").read_bytes() == b"1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["thing"]


def test_a_file_size_limit_reached_in_the_middle_leaves_the_checkpoint_before(
    lives: Any, base: Path, restart: Any
) -> None:
    outcome = lives.run("fill", directory=str(base), limit=200_000, size=100_000)["result"]
    assert outcome["error"] == "StorageError"
    assert "File too large" in outcome["message"]
    assert restart(base) == []
    assert read_step(CheckpointStore(base)) == 2
    assert lives.run("fill", directory=str(base), limit=None, size=100_000)["result"] == {}
    assert read_step(CheckpointStore(base)) == 9


FULL_DISK = """
set -e
mount -t tmpfs -o size=300k none "$1"
exec "$2" -c '
import sys; sys.path.insert(0, sys.argv[2])
import programs
from pathlib import Path
place = Path(sys.argv[1]) / "checkpoints"
programs.save(None, directory=str(place), steps=[1, 2])
outcome = programs.fill(None, directory=str(place), limit=None, size=60_000)
assert outcome["error"] == "StorageError" and "No space left" in outcome["message"], outcome
left = sorted(entry.name for entry in place.iterdir())
assert left == ["step-00000001", "step-00000002"], left
assert programs.CheckpointStore(place).latest().step == 2
programs.save(None, directory=str(place), steps=[3])
assert programs.CheckpointStore(place).steps() == [2, 3]
print("whole")
' "$1" "$3"
"""


def test_a_full_disk_leaves_the_checkpoint_before_and_no_litter(tmp_path: Path) -> None:
    user_mount = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        probe = subprocess.run([*user_mount, "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the program unshare to mount a small disk")
    if probe.returncode != 0:
        pytest.skip(f"this system lets no user mount a small disk: {probe.stderr.decode().strip()}")
    command = [*user_mount, "sh", "-c", FULL_DISK, "sh", str(tmp_path), sys.executable, str(CRASH)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "whole", done.stderr


def flips(directory: Path) -> Iterator[tuple[Path, int]]:
    """Yield every byte of the small files and a sample of the tensors' bytes."""
    chooser = generator(6, "test.flips")
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        size = path.stat().st_size
        small = path.suffix == ".json"
        for position in range(size) if small else sorted(set(chooser.integers(0, size, 60).tolist())):
            yield path, position


def undetected(store: CheckpointStore, directory: Path) -> list[str]:
    missed: list[str] = []
    chooser = generator(7, "test.bits")
    for path, position in flips(directory):
        before = path.read_bytes()
        damaged = bytearray(before)
        damaged[position] ^= 1 << int(chooser.integers(0, 8))
        path.write_bytes(damaged)
        try:
            store.load(2)
            missed.append(f"{path.name} byte {position} passed")
        except CheckpointError as error:
            if f"{path} " not in str(error):
                missed.append(f"{path.name} byte {position} is blamed on: {error}")
        finally:
            path.write_bytes(before)
    return missed


def test_a_flipped_byte_in_any_file_is_detected_and_the_file_named(base: Path) -> None:
    store = CheckpointStore(base)
    assert undetected(store, base / "step-00000002") == []
    store.load(2)


def test_the_flip_test_notices_a_verification_without_hashes(base: Path) -> None:
    with mock.patch.object(files, "sha256_file", return_value=mock.ANY):
        assert undetected(CheckpointStore(base), base / "step-00000002") != []


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors"])
def test_fallback_takes_the_checkpoint_before_a_damaged_one_and_the_run_can_go_on(base: Path, name: str) -> None:
    store = CheckpointStore(base)
    path = base / "step-00000002" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{name}.* with fallback"):
        store.latest()
    assert read_step(store, fallback=True) == 1
    store.save(2, groups(2), {"note": 2})
    assert read_step(store) == 2, "the damaged checkpoint was kept in place of the good one"


def test_what_is_saved_after_a_fallback_is_not_dropped_for_the_damaged_later_ones(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (2, 4, 6):
        store.save(step, groups(step), {"note": step}, best_step=2)
    for step in (4, 6):
        (tmp_path / f"step-{step:08d}" / "state.json").write_bytes(b"{}")
    assert read_step(store, fallback=True) == 2
    store.save(3, groups(3), {"note": 3}, best_step=2)
    assert read_step(store) == 3
    assert store.steps() == [2, 3]


def test_fallback_says_so_when_every_checkpoint_is_damaged(base: Path) -> None:
    for step in (1, 2):
        (base / f"step-{step:08d}" / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"step-00000001.state\.json"):
        CheckpointStore(base).latest(fallback=True)


def test_the_lives_are_killed_by_a_real_signal(lives: Any, tmp_path: Path) -> None:
    outcome = lives.run("save_for_ever", directory=str(tmp_path / "c"), first=1, kill_after=0.05)
    assert outcome == {"status": None, "signal": int(signal.SIGKILL), "result": None}
    assert lives.run("save", directory=str(tmp_path / "d"), steps=[1])["status"] == 0
