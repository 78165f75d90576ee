"""The run directory: who may open it, what it records, and how it comes back after a kill."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import forethought
from forethought.core import environment as environment_module
from forethought.core import files
from forethought.core.config import config
from forethought.core.environment import environment, git_state
from forethought.core.errors import ArtefactError, ConfigError, RunExistsError, StorageError, TrainingError
from forethought.core.faults import faults
from forethought.core.run import Run, open_run, read_records

SYSCALLS = runpy.run_path(str(Path(__file__).resolve().parent.parent / "crash" / "syscalls.py"))


@config
class Inner:
    rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)


@config
class Settings:
    width: int = 3
    steps: int = 10
    inner: Inner = Inner()
    name: str | None = None


def open_(directory: Path, settings: Settings | None = None, **choices: Any) -> Run:
    return Run.open(directory, config=settings or Settings(), recipe="tiny", **choices)


def test_a_new_run_records_config_difference_environment_and_kind(tmp_path: Path) -> None:
    given = Settings(width=4, inner=Inner(rate=0.2))
    with open_(tmp_path / "a" / "run", given, recipe_config=Settings()) as run:
        assert not run.resumed
    held = open_run(tmp_path / "a" / "run")
    assert held["config"]["recipe"] == "tiny"
    assert held["config"]["config"]["inner"] == {"rate": 0.2, "betas": [0.9, 0.95]}
    assert held["config"]["difference"] == {
        "inner.rate": {"recipe": 0.1, "given": 0.2},
        "width": {"recipe": 3, "given": 4},
    }
    assert len(held["config"]["digest"]) == 64
    assert held["environment"]["packages"]["torch"]
    assert held["result"] is None
    assert forethought.load(tmp_path / "a" / "run")["config"] == held["config"]


def test_refuse_is_the_default_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    open_(tmp_path / "run").close()
    with pytest.raises(RunExistsError, match="--exists resume to go on with it, --exists replace"):
        open_(tmp_path / "run")


def test_resume_goes_on_and_replace_starts_anew(tmp_path: Path) -> None:
    with open_(tmp_path / "run") as run:
        run.log({"step": 1}, timing={"seconds": 1})
        run.checkpoints.save(1, {}, {})
        run.write_result({"loss": 1.0})
    with open_(tmp_path / "run", exists="resume") as run:
        assert run.resumed
        assert run.metrics() == [{"step": 1}]
        assert run.checkpoints.steps() == [1]
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    with open_(tmp_path / "run", exists="replace") as run:
        assert not run.resumed
        assert run.metrics() == []
        assert run.checkpoints.steps() == []
        assert run.result() is None
    assert sorted(entry.name for entry in (tmp_path / "run").iterdir()) == [
        ".lock",
        "artefact.json",
        "config.json",
        "environment.json",
    ]


@pytest.mark.parametrize("exists", ["resume", "replace", "refuse"])
def test_files_that_are_no_run_are_never_touched(tmp_path: Path, exists: Any) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / ".git").mkdir()
    with pytest.raises(RunExistsError):
        open_(tmp_path, exists=exists)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "thesis.tex").unlink()
    with pytest.raises(RunExistsError):
        open_(tmp_path, exists=exists)
    assert (tmp_path / ".git").is_dir()


@pytest.mark.parametrize("exists", ["resume", "replace", "refuse"])
def test_an_empty_directory_and_a_first_moment_killed_can_be_used(tmp_path: Path, exists: Any) -> None:
    (tmp_path / "empty").mkdir()
    open_(tmp_path / "empty", exists=exists).close()
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".lock").write_bytes(b"")
    with open_(tmp_path / "killed", exists=exists) as run:
        assert not run.resumed


def test_a_file_in_the_way_and_an_unknown_choice_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunExistsError, match="is a file"):
        open_(tmp_path / "file", exists="resume")
    with pytest.raises(ConfigError, match=r"'resum'; known: .*Did you mean 'resume'") as caught:
        open_(tmp_path / "run", exists="resum")
    assert isinstance(caught.value, ValueError)
    assert not (tmp_path / "run").exists()


def test_a_kill_at_any_point_of_replace_leaves_what_can_be_resumed_or_replaced(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    for number in range(1, 200):
        directory = tmp_path / f"run{number}"
        with open_(directory) as run:
            run.log({"step": 1})
            run.checkpoints.save(1, {}, {"position": run.position()})
        seen: list[Any] = []

        def kill(call: Any, seen: list[Any] = seen, number: int = number) -> None:
            seen.append(call)
            if len(seen) >= number:
                raise Killed(call.name)

        try:
            with SYSCALLS["watched"](SYSCALLS["under"](directory, kill)):
                open_(directory, Settings(width=9), exists="replace").close()
        except Killed:
            with open_(directory, Settings(width=9), exists="replace") as run:
                assert run.checkpoints.steps() == []
                assert run.metrics() == []
        else:
            assert number > 10
            return


def test_a_changed_config_is_refused_on_resume_and_the_leaves_are_named(tmp_path: Path) -> None:
    open_(tmp_path / "run").close()
    changed = Settings(width=4, inner=Inner(rate=0.3))
    with pytest.raises(ConfigError, match=r"inner\.rate, width differ \(inner\.rate: recorded 0\.1, given 0\.3\)"):
        open_(tmp_path / "run", changed, exists="resume")
    with pytest.raises(ConfigError, match="width differ"):
        open_(tmp_path / "run", changed, exists="resume", allow=("inner.rate",))
    open_(tmp_path / "run", changed, exists="resume", allow=("inner.rate", "width")).close()
    open_(tmp_path / "run", exists="resume").close()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"config": []}', b"[" * 100_000, b"\0" * 10])
def test_a_damaged_config_is_one_clear_error_on_resume(tmp_path: Path, content: bytes) -> None:
    open_(tmp_path / "run").close()
    (tmp_path / "run" / "config.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"config\.json"):
        open_(tmp_path / "run", exists="resume")
    open_(tmp_path / "run", exists="replace").close()


def test_a_run_is_open_in_one_place_at_a_time(tmp_path: Path) -> None:
    with open_(tmp_path / "run"):
        for exists in ("resume", "replace"):
            with pytest.raises(RunExistsError, match="in use by another process"):
                open_(tmp_path / "run", exists=exists)
    open_(tmp_path / "run", exists="resume").close()


def test_another_living_process_keeps_its_run_and_a_killed_one_gives_it_up(lives: Any, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    holder = threading.Thread(
        target=lives.run, args=("hold",), kwargs={"directory": str(directory), "seconds": 60, "kill_after": 2.0}
    )
    holder.start()
    deadline = time.monotonic() + 60
    while not (directory / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(RunExistsError, match="in use by another process"):
        open_(directory, exists="replace")
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".slow.tmp-")] != []
    holder.join(timeout=60)
    with open_(directory, exists="replace"):
        assert [entry.name for entry in tmp_path.iterdir()] == ["run"], "the staging of the killed one was not swept"


def test_the_lock_test_notices_a_missing_lock(tmp_path: Path) -> None:
    with open_(tmp_path / "run"), mock.patch("fcntl.flock"):
        second = open_(tmp_path / "run", exists="resume")
        assert second.resumed, "without its lock a run is opened twice, which the tests above would see"
        second.close()


def test_a_file_system_without_locks_is_said_to_be_one(tmp_path: Path) -> None:
    with (
        mock.patch("fcntl.flock", side_effect=OSError(95, "Operation not supported")),
        pytest.raises(StorageError, match=r"could not lock .*not supported"),
    ):
        open_(tmp_path / "run")


def test_a_torn_last_line_is_passed_over_and_the_next_record_starts_a_line(tmp_path: Path) -> None:
    with open_(tmp_path / "run") as run:
        run.log({"step": 1})
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_bytes()
    for torn in (b"{", b'{"step": 2, "text": "\xc3', b'{"step": 2}', b"\0\0\0"):
        path.write_bytes(whole + torn)
        assert read_records(path)[0] == {"step": 1}
        with open_(tmp_path / "run", exists="resume") as run:
            run.log({"step": 3})
            assert run.metrics() == [{"step": 1}, {"step": 3}]
    path.write_bytes(b"torn from the start")
    with open_(tmp_path / "run", exists="resume") as run:
        assert run.metrics() == []


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"a": 1}\nnot json\n{"a": 2}\n', "line 2 is not JSON"),
        (b"[1]\n", "line 1 holds no JSON object"),
        (b'{"a": 1}\n' + b"[" * 100_000 + b"\n", "line 2 is not JSON"),
    ],
)
def test_a_damaged_record_is_named_by_file_and_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(ArtefactError, match=rf"metrics\.jsonl {complaint}"):
        read_records(tmp_path / "metrics.jsonl")


def test_records_are_read_from_regular_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtefactError, match="no regular file"):
        read_records(tmp_path / "pipe")
    assert read_records(tmp_path / "missing") == []


def test_rewind_cuts_back_to_the_vouched_position_and_names_lost_records(tmp_path: Path) -> None:
    with open_(tmp_path / "run") as run:
        run.log({"event": "train", "step": 1}, timing={"seconds": 1.0})
        position = run.position()
        run.log({"event": "train", "step": 2}, timing={"seconds": 2.0})
        run.log({"event": "evaluation", "step": 2})
        assert [record["step"] for record in run.metrics("train")] == [1, 2]
        run.rewind(position)
        assert [record["step"] for record in run.metrics()] == [1]
        run.log({"event": "train", "step": 9})
        assert [record["step"] for record in run.metrics()] == [1, 9]
        with pytest.raises(ArtefactError, match="the checkpoint saw 999999: records were removed"):
            run.rewind({"metrics.jsonl": 999_999})
        run.rewind({})
        assert run.metrics() == []
        assert (tmp_path / "run" / "timings.jsonl").stat().st_size == 0


def test_wall_clock_figures_stand_apart_from_the_records(tmp_path: Path) -> None:
    with open_(tmp_path / "run") as run:
        run.log({"loss": 1.0}, timing={"seconds": 0.5})
        run.log({"text": "grüße \udcff"})
    held = open_run(tmp_path / "run")
    assert held["metrics"] == [{"loss": 1.0}, {"text": "grüße \udcff"}]
    assert held["timings"] == [{"seconds": 0.5}]


def test_a_figure_that_is_not_finite_is_refused_and_named(tmp_path: Path) -> None:
    with open_(tmp_path / "run") as run:
        for value in (float("nan"), float("inf")):
            with pytest.raises(TrainingError, match=r"metrics\.jsonl holds a figure that is not finite \(loss\)"):
                run.log({"step": 1, "loss": value})
        assert run.metrics() == []


def test_a_follower_reads_and_writes_nothing(tmp_path: Path) -> None:
    with open_(tmp_path / "run") as run:
        run.log({"step": 1})
        run.flush()
        before = sorted((entry.name, entry.stat().st_mtime_ns) for entry in (tmp_path / "run").iterdir())
        with Run.follow(tmp_path / "run") as follower:
            follower.log({"step": 2}, timing={"seconds": 1})
            assert follower.position() == {}
            follower.rewind({})
            assert follower.metrics() == [{"step": 1}]
        after = sorted((entry.name, entry.stat().st_mtime_ns) for entry in (tmp_path / "run").iterdir())
        assert after == before


def test_the_result_is_written_whole_and_read_back(tmp_path: Path) -> None:
    with open_(tmp_path / "run") as run:
        assert run.write_result({"loss": 1.5}) == tmp_path / "run" / "result.json"
        assert run.result() == {"loss": 1.5}
    assert open_run(tmp_path / "run")["result"] == {"loss": 1.5}


def test_closing_on_a_full_disk_says_so_and_still_releases_the_run(tmp_path: Path) -> None:
    run = open_(tmp_path / "run")
    run.log({"step": 1})

    def refuse(point: str) -> None:
        if point == "file.write":
            raise OSError(28, "No space left on device")

    with faults(refuse), pytest.raises(StorageError, match=r"metrics\.jsonl: No space left"):
        run.close()
    open_(tmp_path / "run", exists="resume").close()


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


def test_the_git_state_names_the_revision_and_whether_the_tree_was_dirty(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"revision": None, "dirty": None}
    package = tmp_path / "package"
    package.mkdir()
    git(tmp_path, "init")
    (package / "code.py").write_text("a = 1\n")
    assert git_state(package) == {"revision": None, "dirty": None}, "a repository without a commit has no revision"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = git_state(package)
    assert clean["dirty"] is False
    assert len(clean["revision"]) == 40
    (package / "code.py").write_text("a = 2\n")
    assert git_state(package) == {"revision": clean["revision"], "dirty": True}


def test_an_installed_copy_inside_another_repository_has_no_revision(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "own.py").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "somebody else's")
    (tmp_path / "venv" / "forethought").mkdir(parents=True)
    (tmp_path / "venv" / "forethought" / "code.py").write_text("")
    assert git_state(tmp_path / "venv" / "forethought") == {"revision": None, "dirty": None}


def test_the_git_state_is_unknown_without_git(tmp_path: Path) -> None:
    with mock.patch.object(environment_module.subprocess, "run", side_effect=FileNotFoundError):
        assert git_state(tmp_path) == {"revision": None, "dirty": None}


def test_the_environment_is_plain_json_with_versions_threads_and_hardware() -> None:
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["hardware"]["cores"] >= 1
    assert facts["hardware"]["memory_bytes"] > 1 << 27
    assert facts["hardware"]["processor"]
    assert set(facts["git"]) == {"revision", "dirty"}
    assert facts["packages"]["pydantic"]
    assert "torch" in facts["threads"]


def test_the_environment_does_without_torch_and_without_cpuinfo() -> None:
    with (
        mock.patch.dict(environment_module.sys.modules, {"torch": None}),
        mock.patch.object(environment_module.Path, "read_text", side_effect=FileNotFoundError),
        mock.patch.object(environment_module, "_PACKAGES", ("no-such-package",)),
    ):
        facts = environment()
    assert facts["threads"]["torch"] is None
    assert facts["hardware"]["accelerators"] == []
    assert facts["packages"] == {"no-such-package": None}
    assert facts["hardware"]["processor"]


def test_open_run_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"config\.json does not exist"):
        open_run(tmp_path)
    files.write_json(tmp_path / "config.json", {})
    with pytest.raises(ArtefactError, match=r"environment\.json does not exist"):
        open_run(tmp_path)


def test_a_run_that_made_nothing_can_be_discarded_and_one_that_made_something_cannot(tmp_path: Path) -> None:
    open_(tmp_path / "failed").discard()
    assert list(tmp_path.iterdir()) == []
    with open_(tmp_path / "run") as run:
        run.checkpoints.save(1, {}, {})
        run.discard()
    with open_(tmp_path / "run", exists="resume") as run:
        run.discard()
    Run.follow(tmp_path / "run").discard()
    assert (tmp_path / "run" / "checkpoints" / "step-00000001").is_dir()
