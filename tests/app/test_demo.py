"""The tour end to end, tiny: killed in each job and resumed, in one process and two, on one page."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forethought.app.demo.jobs import PARTS, TABLE, do_all, jobs_of
from forethought.app.demo.run import run_demo
from forethought.app.demo.settings import CertificateSize, ControlSize, DemoConfig, WorldSize, full, quick
from forethought.app.demo.verb import demo_verb
from forethought.core.errors import ConfigError, TaskError
from tests.app.browser import BROWSER, laid_out
from tests.app.test_report import links_of
from tests.app.workshop import small_config, small_text

PROGRAM = """
import sys
from pathlib import Path
from tests.app.test_demo import small_demo
from forethought.app.demo.run import run_demo
parts = sys.argv[3].split(",")
run_demo(small_demo(Path(sys.argv[1])), Path(sys.argv[2]), recipe="test", parts=parts, processes=int(sys.argv[4]))
"""


def small_demo(corpus: Path) -> DemoConfig:
    """Return a tour of seconds."""
    settings = small_config(corpus)
    settings = replace(settings, loop=replace(settings.loop, steps=60, checkpoint_every=10))
    made = quick()
    scarce = replace(made.members.fit, corpus=settings.corpus, model=settings.model, context=32, evaluation_tokens=512)
    return DemoConfig(
        target=settings,
        draft=settings,
        sources=(str(corpus),),
        max_tokens=12,
        num_prompts=2,
        num_speculative_tokens=3,
        agreement_tokens=256,
        members=replace(made.members, fit=scarce, train_tokens=2048, epochs=2.0, members=made.members.members[:2]),
        students=1,
        certificate=CertificateSize(tokens=10_000, steps=15, quantise_steps=15),
        world=WorldSize(recipe="quick", episodes=24, steps=12, pairs=1, far_pairs=0, surprise_pairs=4, candidates=8),
        control=ControlSize(
            seeds=(0,), play_episodes=20, training_steps=40, nominal_episodes=20, adapt_episodes=4, adapt_steps=20,
            rides=2, delays=(1.0,),
        ),
    )  # fmt: skip


def timeless(result: dict) -> dict:
    """Drop what a clock or a place decides."""
    # With SSD even the drafts depend on the clock: what was prepared in time is used. The tokens do not.
    dropped = ("report", "ssd", "certificate", "command", "verify", "teacher", "corpus")

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if k not in dropped}
            return {k: clean(v) for k, v in kept.items() if not re.search("second|speed|delta$", k)}
        return [clean(v) for v in value] if isinstance(value, list) else value

    return clean(json.loads(json.dumps(result)))


@pytest.fixture(scope="module")
def finished_tour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    place = tmp_path_factory.mktemp("demo")
    small_text(place / "text.jsonl")
    return place, run_demo(small_demo(place / "text.jsonl"), place / "demo", recipe="test")


def test_every_part_leaves_its_figures_and_decoding_changes_no_token(finished_tour: tuple[Path, dict]):
    place, result = finished_tour
    recorded = json.loads((place / "demo" / "result.json").read_text())
    assert recorded == {name: value for name, value in result.items() if name != "report"}
    decoded = recorded["decode"]
    assert decoded["greedy_tokens_equal"] is True
    assert decoded["methods"]["none"]["tokens_per_target_forward"] == pytest.approx(1.0, abs=0.1)
    assert decoded["methods"]["draft"]["tokens_per_target_forward"] > 1.2
    assert decoded["methods"]["ssd"]["cache_hit_rate"] is not None
    assert recorded["target"]["validation_loss"] < recorded["target"]["unigram_loss"]
    assert recorded["serve"]["equal"] is True
    assert recorded["serve"]["usage"]["completion_tokens"] == 12
    together = recorded["together"]
    assert together["ensemble_loss"] < sum(together["single_losses"]) / 2
    certified = recorded["certify"]
    assert certified["verified_bound"] == pytest.approx(certified["bound"], abs=1e-12)
    assert certified["train_risk"] < certified["bound"]
    card = (place / "demo" / "certified-model" / "README.md").read_text()
    assert certified["weights_sha256"] in card
    assert recorded["control"]["reward"]["weights_unchanged"] is True
    assert recorded["seconds"].keys() == TABLE.keys()


def test_the_page_has_every_room_and_asks_for_nothing(finished_tour: tuple[Path, dict], tmp_path: Path):
    place, result = finished_tour
    page = Path(result["report"]).read_text()
    chapters = re.findall(r'class="chapter"[^>]*>([^<:]+)', page)
    assert chapters == ["Pretrain", "Certify", "Decode", "World", "Control", "The bill"]
    for figure in (
        result["together"]["ensemble_loss"],
        result["certify"]["bound"],
        result["decode"]["methods"]["draft"]["tokens_per_target_forward"],
        result["control"]["body"]["as_learned"]["mean"],
    ):
        assert f"{figure:.4g}"[:4] in page
    found = links_of(page)
    assert "script" not in found.tags
    beside = [link for link in found.links if not link.startswith(("#", "data:image/png;base64,"))]
    assert len(beside) >= 6
    assert all((place / "demo" / link).is_file() for link in beside)
    assert not re.search(r"url\((?!#)", page)
    if BROWSER:
        for width in (390, 1280):
            seen = laid_out(Path(result["report"]), tmp_path, width=width)
            assert seen["scroll"] <= width
            assert seen["resources"] == 0
            assert seen["outside"] == 0


def test_a_finished_tour_resumes_at_once_and_alike(finished_tour: tuple[Path, dict]):
    place, result = finished_tour
    before = {path: path.stat().st_mtime_ns for path in (place / "demo" / "jobs").glob("*.json")}
    again = run_demo(small_demo(place / "text.jsonl"), place / "demo", recipe="test", parts=("pretrain", "world"))
    assert again == result
    assert {path: path.stat().st_mtime_ns for path in (place / "demo" / "jobs").glob("*.json")} == before


KILLED = {  # parts, and something that is left in the middle of them
    "target": ("pretrain,control", "target/checkpoints/step-00000020"),
    "certificate": ("certify", "certificate/work"),
    "control": ("control", "control/seed-0/reward.json"),
    "world": ("world", "world/near.json"),
    "decode": ("decode", "jobs/decode.lock"),
}


@pytest.mark.parametrize(
    "name", [name if name == "target" else pytest.param(name, marks=pytest.mark.nightly) for name in KILLED]
)
def test_a_killed_tour_goes_on_to_the_same_figures(finished_tour: tuple[Path, dict], tmp_path: Path, name: str):
    """Kill two processes in the middle of a job, and finish in one."""
    place, result = finished_tour
    parts, sign = KILLED[name]
    out = tmp_path / "demo"
    command = [sys.executable, "-c", PROGRAM, str(place / "text.jsonl"), str(out), parts, "2"]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    wait_for((out / sign).exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "result.json").exists()
    resumed = timeless(run_demo(small_demo(place / "text.jsonl"), out, recipe="test", parts=parts.split(",")))
    assert resumed == {key: value for key, value in timeless(result).items() if key in resumed}
    assert not processes_of(out)


def test_one_failure_ends_both_processes_and_names_itself(finished_tour: tuple[Path, dict], tmp_path: Path):
    place, _ = finished_tour
    settings = small_demo(place / "text.jsonl")
    bad = replace(settings, target=replace(settings.target, optimiser=replace(settings.target.optimiser, lr=1e30)))
    with pytest.raises(TaskError, match="a part of the demo failed"):
        run_demo(bad, tmp_path / "demo", recipe="test", parts=("pretrain", "control"), processes=2)
    assert not processes_of(tmp_path / "demo")


def test_ctrl_c_ends_both_processes_and_says_how_to_go_on(finished_tour: tuple[Path, dict], tmp_path: Path):
    place, _ = finished_tour
    out = tmp_path / "demo"
    command = [sys.executable, "-c", PROGRAM, str(place / "text.jsonl"), str(out), "pretrain,control", "2"]
    process = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background of a shell has inherited that Ctrl-C is to be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for((out / "target" / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGINT)
    assert "run the same command again" in process.communicate(timeout=60)[1]
    assert not processes_of(out)


def test_only_makes_what_a_part_needs_and_a_later_call_adds_to_it(finished_tour: tuple[Path, dict], tmp_path: Path):
    assert jobs_of(["decode"]) == ["corpus", "target", "draft", "decode", "serve"]
    assert jobs_of(["certify", "world"]) == ["corpus", "certify", "world"]
    assert jobs_of(tuple(PARTS)) == list(TABLE)
    place, _ = finished_tour
    settings = small_demo(place / "text.jsonl")
    first = run_demo(settings, tmp_path / "demo", recipe="test", parts=("control",))
    assert first.keys() == {"kind", "recipe", "control", "seconds", "report"}
    page = Path(first["report"]).read_text()
    assert re.findall(r'class="chapter"[^>]*>([^<:]+)', page) == ["Control", "The bill"]
    second = run_demo(settings, tmp_path / "demo", recipe="test", parts=("pretrain",))
    assert second["control"] == first["control"]
    assert {"target", "draft", "together"} <= second.keys()


def test_a_job_is_done_once_by_whoever_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from forethought.app.demo import jobs

    done: list[str] = []
    settings = full()
    monkeypatch.setattr(jobs, "do", lambda name, given, out: (done.append(name), _mark(out, name)))
    names = ["draft", "together", "target", "corpus"]
    do_all(names, settings, tmp_path, patience=0.0)
    # Needs come before what needs them, whatever the order of the list.
    assert done.index("corpus") < done.index("target") < done.index("draft")
    assert sorted(done) == sorted(names)
    do_all(names, settings, tmp_path)
    assert sorted(done) == sorted(names)


def test_a_part_without_its_packages_says_so_and_is_asked_again(
    finished_tour: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place, _ = finished_tour
    settings = small_demo(place / "text.jsonl")
    lacking = replace(TABLE["control"], packages=("no_such_package",))
    monkeypatch.setitem(TABLE, "control", lacking)
    result = run_demo(settings, tmp_path / "demo", recipe="test", parts=("control",))
    assert "pip install 'forethought[demo]'" in result["control"]["skipped"]
    assert "no_such_package" in Path(result["report"]).read_text()
    monkeypatch.setitem(TABLE, "control", replace(lacking, packages=()))
    again = run_demo(settings, tmp_path / "demo", recipe="test", parts=("control",))
    assert "skipped" not in again["control"]


def test_an_unknown_part_is_named():
    with pytest.raises(ConfigError, match=r"unknown part of the demo 'decod'.*Did you mean 'decode'"):
        demo_verb(["--only", "decod"])


def wait_for(sign: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not sign() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sign()


def processes_of(out: Path) -> list[str]:
    """Return the command lines of processes that work in a directory."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            told = line.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if str(out) in told and "--jobs" in told:
            found.append(told)
    return found


def _mark(out: Path, name: str) -> None:
    (out / "jobs" / f"{name}.json").write_text('{"result": {}, "seconds": {}}')
