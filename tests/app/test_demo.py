"""The main job end to end, small, killed on the way and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from forethought.app.demo import DemoConfig, demo_verb, run_demo
from forethought.core.errors import ConfigError
from tests.app.workshop import small_config, small_text

PROGRAM = """
import sys
from pathlib import Path
from tests.app.test_demo import small_demo
from forethought.app.demo import run_demo
run_demo(small_demo(Path(sys.argv[1])), Path(sys.argv[2]), recipe="test", as_json=True)
"""


def small_demo(corpus: Path) -> DemoConfig:
    settings = small_config(corpus)
    settings = replace(settings, loop=replace(settings.loop, steps=60, checkpoint_every=10))
    return DemoConfig(
        target=settings,
        draft=settings,
        sources=(str(corpus),),
        max_tokens=12,
        num_prompts=2,
        num_speculative_tokens=3,
        agreement_tokens=256,
    )


def timeless(result: dict) -> dict:
    """Drop what a clock decides."""
    text = json.dumps(result)
    kept = json.loads(text)

    def clean(value: object) -> object:
        if isinstance(value, dict):
            # With SSD even the drafts depend on the clock: what was prepared in time is used. The tokens do not.
            timed = ("report", "ssd")
            return {k: clean(v) for k, v in value.items() if "second" not in k and "speed" not in k and k not in timed}
        return [clean(v) for v in value] if isinstance(value, list) else value

    cleaned = clean(kept)
    assert isinstance(cleaned, dict)
    return cleaned


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    place = tmp_path_factory.mktemp("demo")
    small_text(place / "text.jsonl")
    return place, run_demo(small_demo(place / "text.jsonl"), place / "demo", recipe="test")


def test_every_figure_is_in_result_json_and_on_the_page(finished: tuple[Path, dict]):
    place, result = finished
    recorded = json.loads((place / "demo" / "result.json").read_text())
    assert recorded == {name: value for name, value in result.items() if name != "report"}
    decoded = recorded["decode"]
    assert decoded["greedy_tokens_equal"] is True
    assert decoded["methods"]["none"]["tokens_per_target_forward"] == pytest.approx(1.0, abs=0.1)
    assert decoded["methods"]["draft"]["tokens_per_target_forward"] > 1.2
    assert decoded["methods"]["ssd"]["cache_hit_rate"] is not None
    assert 0 < decoded["held_out_overlap"] <= 1
    assert recorded["target"]["validation_loss"] < recorded["target"]["unigram_loss"]
    page = Path(result["report"]).read_text()
    for figure in (recorded["target"]["validation_loss"], decoded["methods"]["draft"]["tokens_per_target_forward"]):
        assert f"{figure:.2f}"[:4] in page
    assert page.count("<svg") == 4


def test_a_finished_demo_resumes_at_once_and_alike(finished: tuple[Path, dict]):
    place, result = finished
    again = run_demo(small_demo(place / "text.jsonl"), place / "demo", recipe="test", parts=("pretrain", "decode"))
    assert timeless(again) == timeless(result)


def test_a_killed_demo_goes_on_to_the_same_figures(finished: tuple[Path, dict], tmp_path: Path):
    place, result = finished
    command = [sys.executable, "-c", PROGRAM, str(place / "text.jsonl"), str(tmp_path / "demo")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "demo" / "target" / "checkpoints" / "step-00000020"
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert metrics.exists()
    assert not (tmp_path / "demo" / "result.json").exists()
    subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True, timeout=240)
    resumed = json.loads((tmp_path / "demo" / "result.json").read_text())
    whole = timeless({name: value for name, value in result.items() if name != "report"})
    assert _without_places(timeless(resumed)) == _without_places(whole)


def test_an_unknown_part_is_named():
    with pytest.raises(ConfigError, match=r"unknown part of the demo 'decod'.*Did you mean 'decode'"):
        demo_verb(["--only", "decod"])


def _without_places(result: dict) -> dict:
    for name in ("target", "draft"):
        result[name] = {key: value for key, value in result[name].items() if key not in ("teacher", "corpus")}
    return result
