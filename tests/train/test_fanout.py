"""Fan-out with real worker processes, real kills and a real local Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forethought.core.errors import ArtefactError, ConfigError, TaskError
from forethought.train.fanout import fan_out
from forethought.train.task import Job, plan, resolve

PROGRAMS = Path(__file__).parent / "programs"
ALLOW = ["fanout_tasks"]


@pytest.fixture(autouse=True)
def programs_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROGRAMS), prepend=os.pathsep)


def result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_text())


def attempts(root: Path, name: str) -> int:
    return (root / f"{name}.log").read_text().count("attempt ")


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "did not happen in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


class Updates:
    def __init__(self) -> None:
        self.seen: list[float] = []

    def update(self, done: float, **facts: object) -> None:
        self.seen.append(done)

    def close(self) -> None: ...


def test_killed_worker_resumes_in_its_directory_and_results_keep_their_order(tmp_path: Path) -> None:
    settings = [{"name": "slow", "pause": 0.3}, {"name": "killed", "die_at": 3}, {"name": "whole"}]
    updates = Updates()
    paths = fan_out(
        "fanout_tasks:fit", settings, root=tmp_path, workers=3, threads_per_worker=1, allow=ALLOW, progress=updates
    )
    assert [path.name for path in paths] == ["slow", "killed", "whole"]
    assert result(paths[1]) == {"resumed_at": 2, "threads": 1}
    assert result(paths[2]) == {"resumed_at": 0, "threads": 1}
    assert [attempts(tmp_path, name) for name in ("slow", "killed", "whole")] == [1, 2, 1]
    metrics = [(path / "metrics.jsonl").read_bytes() for path in paths]
    assert metrics[0] == metrics[1] == metrics[2]
    assert updates.seen == [1, 2, 3]

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = fan_out("fanout_tasks:fit", settings[::-1], root=tmp_path, allow=ALLOW)
    assert again == paths[::-1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_bad_input_is_final_a_crash_is_tried_again_and_all_others_finish(tmp_path: Path) -> None:
    settings = [{"name": how.replace(" ", "-"), "how": how} for how in ("input", "crash", "good", "no result")]
    with pytest.raises(TaskError, match="3 of 4 tasks failed") as caught:
        fan_out("fanout_tasks:fail", settings, root=tmp_path, retries=1, allow=ALLOW)
    message = str(caught.value)
    assert "input: ConfigError: the answer may not be 41; give 42" in message
    assert "crash: crashed with exit status 1" in message
    assert "no-result: ArtefactError" in message
    assert all(str(tmp_path / f"{name}.log") in message for name in ("input", "crash", "no-result"))
    names = ("input", "crash", "good", "no-result")
    assert [attempts(tmp_path, name) for name in names] == [1, 2, 1, 1]
    assert "a mistake in the code" in (tmp_path / "crash.log").read_text()
    assert "this is good" in (tmp_path / "good.log").read_text()
    assert [(tmp_path / name / "done.json").exists() for name in names] == [False, False, True, False]


def driver(tmp_path: Path, **arguments: Any) -> subprocess.Popen[str]:
    given = tmp_path / "arguments.json"
    given.write_text(json.dumps({"root": str(tmp_path / "runs"), "allow": ALLOW, **arguments}))
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS / "fanout_driver.py"), str(given)], stdout=subprocess.PIPE, text=True
    )


def test_no_worker_outlives_a_killed_or_interrupted_parent(tmp_path: Path) -> None:
    arguments = {"task": "fanout_tasks:linger", "settings": [{"name": "run"}], "retries": 0}
    for number, blow in enumerate((signal.SIGKILL, signal.SIGINT)):
        parent = driver(tmp_path, **arguments)
        note = tmp_path / "runs" / "run" / f"attempt-{number}"
        wait_for(note.exists)
        pids = [int(pid) for pid in note.read_text().split()]
        parent.send_signal(blow)
        out, _ = parent.communicate(timeout=60)
        try:
            wait_for(lambda pids=pids: not any(alive(pid) for pid in pids))
        finally:
            for pid in filter(alive, pids):
                os.kill(pid, signal.SIGKILL)
        if blow == signal.SIGINT:
            assert parent.returncode == 3
            assert json.loads(out)["error"] == "InterruptedRunError"
    parent = driver(tmp_path, **arguments)
    out, _ = parent.communicate(timeout=60)
    assert json.loads(out) == [str(tmp_path / "runs" / "run")]


def test_ray_tries_a_killed_workers_task_again_and_keeps_the_order(tmp_path: Path) -> None:
    settings = [{"name": "killed", "die_at": 3}, {"name": "whole"}]
    parent = driver(tmp_path, task="fanout_tasks:fit", settings=settings, backend="ray", threads_per_worker=1)
    out, _ = parent.communicate(timeout=200)
    assert parent.returncode == 0, out
    killed, whole = (Path(path) for path in json.loads(out))
    assert (killed.name, whole.name) == ("killed", "whole")
    assert result(killed) == {"resumed_at": 2, "threads": 1}
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert attempts(tmp_path / "runs", "killed") == 2
    assert (whole / "done.json").exists()


@pytest.mark.nightly
def test_ray_reports_failures_as_local_workers_do(tmp_path: Path) -> None:
    settings = [{"name": how.replace(" ", "-"), "how": how} for how in ("input", "crash", "good")]
    parent = driver(tmp_path, task="fanout_tasks:fail", settings=settings, backend="ray", retries=1)
    out, _ = parent.communicate(timeout=200)
    outcome = json.loads(out)
    assert outcome["error"] == "TaskError"
    assert "input: ConfigError: the answer may not be 41; give 42" in outcome["message"]
    assert "crash: ZeroDivisionError: a mistake in the code" in outcome["message"]
    assert [attempts(tmp_path / "runs", name) for name in ("input", "crash", "good")] == [1, 2, 1]


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("shutil:rmtree", [{}], "task 'shutil:rmtree' is not allowed"),
        ("forethoughtless:run", [{}], "is not allowed"),
        ("forethought.core.files:_beside", [{}], "is not allowed"),
        ("forethought.core.files", [{}], "is not allowed"),
        ("forethought.x:run", [{"name": "../up"}], r"name the run '\.\./up'"),
        ("forethought.x:run", [{"seed": 1}, {"seed": 1}], "settings 0 and 1 both name the run"),
        ("forethought.x:run", [{"seed": float("nan")}], "settings 0 are not plain JSON"),
        ("forethought.x:run", [{"seed": (1, 2)}], "settings 0 do not survive JSON"),
    ],
)
def test_what_is_no_task_is_refused(task: str, settings: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        fan_out(task, settings, root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_bad_numbers_and_backends_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'local'"):
        fan_out("forethought.x:run", [], root=tmp_path, backend="locall")
    with pytest.raises(ConfigError, match="workers 0"):
        fan_out("forethought.x:run", [], root=tmp_path, workers=0)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("forethought.core.files:contextmanager", "defines no function"),
        ("forethought.core.files:hashlib", "defines no function"),
        ("forethought.core.files:nothing", "defines no function"),
        ("forethought.nowhere:run", "no module 'forethought.nowhere'"),
    ],
)
def test_only_functions_that_the_package_defines_are_tasks(task: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(task, ("forethought",))


def test_names_are_stable_and_follow_the_settings(tmp_path: Path) -> None:
    first = plan("forethought.x:run", [{"a": 1, "b": [2]}, {"a": 2}], root=tmp_path)
    second = plan("forethought.x:run", [{"a": 2}, {"b": [2], "a": 1}], root=tmp_path)
    assert [job.name for job in first] == [job.name for job in second][::-1]
    assert first[0].name == "run-db45d6d83afa"
    assert Job.from_json(first[0].to_json()) == first[0]


def test_a_task_counts_as_done_only_with_its_own_marker_and_result(tmp_path: Path) -> None:
    (job,) = plan("forethought.x:run", [{"name": "run", "a": 1}], root=tmp_path)
    directory = Path(job.directory)
    directory.mkdir()
    with pytest.raises(ArtefactError, match="result"):
        job.finish()
    (directory / "result.json").write_text('{"loss": 1.0}')
    assert not job.finished()
    job.finish()
    assert job.finished()
    (other,) = plan("forethought.x:run", [{"name": "run", "a": 2}], root=tmp_path)
    with pytest.raises(ConfigError, match="finished with another task or other settings"):
        other.finished()
    (directory / "result.json").write_text('{"loss": 2.0}')
    assert not job.finished()
    (directory / "result.json").write_text('{"loss": ')
    assert not job.finished()


@pytest.mark.parametrize("name", ["run\n", "run.log", "../run", ".hidden"])
def test_a_name_that_is_no_plain_run_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="settings 1 name the run"):
        plan("fanout_tasks:anything", [{"name": "run"}, {"name": name}], root=tmp_path, allow=ALLOW)
