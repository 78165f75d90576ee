"""The GPU benchmark runs from end to end on tiny models without a GPU, and controls what it says it controls."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from forethought.nn.rows import Rows
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "benchmarks" / "gpu"
SCRIPT = FOLDER / "decode.py"


def run(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(SCRIPT), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "OUT"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """The modules of the benchmark, imported as the script does and forgotten again."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names, interval = {path.stem for path in FOLDER.glob("*.py")}, sys.getswitchinterval()
    yield importlib.import_module
    sys.setswitchinterval(interval)
    for name in names & set(sys.modules):
        del sys.modules[name]


@pytest.fixture
def pairs(module: Callable[[str], ModuleType]) -> ModuleType:
    return module("pairs")


def check_race(found: dict[str, Any]) -> None:
    assert sorted(found["differing_tokens"]) == ["ar", "sd", "ssd"]
    assert not any(found["differing_tokens"].values())
    for arm in ("ar", "sd", "ssd"):
        assert 0 < found[arm]["low"] <= found[arm]["median"] <= found[arm]["high"]
    assert found["ar"]["tokens_per_step"] < found["sd"]["tokens_per_step"]
    assert 0.55 < found["sd"]["acceptance"] < 0.97
    assert 0.0 <= found["ssd"]["cache_share"] <= 1.0  # how often depends on how busy the machine is
    assert found["ssd_over_sd"]["median"] > 0


def test_the_whole_script_runs_on_tiny_models(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    done = run("--device", "cpu", "--tiny", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["correct"]
    assert figures == json.loads(out.read_text())
    single, half = figures["checks"]
    assert (single["dtype"], half["dtype"]) == ("float32", "bfloat16")
    assert single["differences"] == []
    assert single["graphed_to_dense"] < 1e-5 < half["graphed_to_dense"] < half["logit_bar"]
    # Both speculated with success, or the equality of tokens says little.
    assert all(0.1 < share < 1.0 for check in (single, half) for share in check["acceptance"].values())
    assert {"graphed.1", "graphed.4", "eager.1", "graphed.chain_of_5"} <= set(figures["passes"]["tiny"]["milliseconds"])
    for batch in (1, 2):
        check_race(figures["races"][f"acceptance 0.8 batch {batch}"])
    assert len(figures["table"]) == 7
    assert all(line in done.stderr for line in figures["table"])


@pytest.mark.nightly
def test_two_ranks_race_over_torch_distributed() -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = run("--device", "cpu", "--tiny", "--json", launcher=launcher)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    for batch in (1, 2):
        check_race(figures["races"][f"acceptance 0.8 batch {batch}"])


def test_a_real_pair_is_raced_besides(module: Callable[[str], ModuleType], shared_data: Path, tmp_path: Path) -> None:
    pair, texts = shared_data / "models" / "pair", tmp_path / "texts.jsonl"
    texts.write_text('{"prompt": "def add(a, b):\\n    return"}\nimport os\n')
    assert module("running").read_prompts(texts) == ["def add(a, b):\n    return", "import os"]
    run = module("running").Run(torch.device("cpu"), module("races").settings_of(True, False, None), float("inf"))
    found = run._race_real(pair / "target", pair / "draft", texts)
    assert run.correct
    assert found["tokens_agree"]
    assert found["differences"] == []
    assert found["sd"]["acceptance"] > 0.2
    assert found["sd"]["tokens_per_step"] > 1.2


def test_what_is_left_out_for_time_is_named(module: Callable[[str], ModuleType]) -> None:
    settings = module("races").settings_of(True, False, None)
    figures = module("running").Run(torch.device("cpu"), settings, 0.0).alone(None, None, None)
    assert figures["correct"]
    assert figures["passes"]["tiny"] == {"skipped": "out of time"}
    assert sum("no time left" in line for line in figures["table"]) == 4


def test_a_wrong_token_is_seen(module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = module("races").settings_of(True, False, None)
    run = module("running").Run(torch.device("cpu"), settings, float("inf"))
    monkeypatch.setattr(module("running"), "_follow", lambda successor, token, count: [0] * count)
    run._races(run._beside_here)
    assert not run.correct
    model = module("pairs").random_model("tiny", torch.device("cpu"), torch.float32)
    for dtype, agree in ((torch.float32, False), (torch.bfloat16, False)):
        answers = {"ar": [[1, 2, 3]], "sd": [[1, 5, 3]]}
        found = module("checks").compare_tokens(model.to(dtype), [[7, 8]], answers)
        assert found["tokens_agree"] is agree
        assert {each["way"]: each["at"] for each in found["differences"]}["sd"] == 1


def test_missing_packages_are_named_and_help_needs_none() -> None:
    done = run("--device", "cpu", "--tiny", launcher=("-S",))
    assert done.returncode == 1
    assert "missing: torch, numpy, scipy, pydantic, safetensors, tokenizers; install with" in done.stderr
    assert "Traceback" not in done.stderr
    help_text = run("--help", launcher=("-S",))
    assert help_text.returncode == 0
    assert "--quick" in help_text.stdout


def test_half_a_pair_is_refused() -> None:
    assert "--target and --draft belong together" in run("--target", "somewhere").stderr


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_no_accelerator_is_said(module: Callable[[str], ModuleType]) -> None:
    with pytest.raises(SystemExit, match="no accelerator is at hand"):
        module("decode").chosen_device(None)
    assert module("decode").chosen_device("cpu") == torch.device("cpu")


def rows_of(tokens: np.ndarray, positions: np.ndarray) -> Rows:
    count = np.arange(len(tokens), dtype=np.int32)
    page = np.zeros((1, 1), dtype=np.int32)
    extra = count[:, None]
    return Rows(tokens, positions, count, count * 0, count * 0, page, count, extra)


@pytest.mark.parametrize("acceptance", [0.6, 0.9])
def test_the_draft_is_right_as_often_as_was_set(pairs: ModuleType, acceptance: float) -> None:
    width, count = 12, 4000
    successor = pairs.successor_of(512)
    inner = pairs.graphed(pairs.random_model("tiny-draft", torch.device("cpu"), torch.float32), 300)
    draft = pairs.Controlled(inner, successor, acceptance, width=width)
    tokens = np.arange(count, dtype=np.int32) % 512
    rows = rows_of(tokens, np.arange(count, dtype=np.int32) // 512 * 7 + 3)
    first, right = draft.greedy(rows), successor[tokens]
    assert abs((first == right).mean() - acceptance) < 4 * np.sqrt(0.25 / count)
    guesses = np.argsort(-draft.logits(rows).numpy(), axis=1, kind="stable")[:, :width]
    assert np.array_equal(guesses[:, 0], first)
    assert all(len(set(line)) == width for line in guesses.tolist())
    missed = first != right
    # What a fan-out of F misses, given that the first choice was wrong and is left out: 1 / (F + 1).
    for fan_out in (1, 3):
        beyond = (guesses[missed, 1 : fan_out + 1] != right[missed, None]).all(axis=1).mean()
        assert abs(beyond - 1 / (fan_out + 1)) < 4 * np.sqrt(0.25 / missed.sum())
    assert np.array_equal(draft.likeliest(rows, 3, first), guesses[:, 1:4])


def test_a_chain_of_the_draft_is_its_first_choices_one_after_another(pairs: ModuleType) -> None:
    successor = pairs.successor_of(512)
    inner = pairs.graphed(pairs.random_model("tiny-draft", torch.device("cpu"), torch.float32), 8)
    draft = pairs.Controlled(inner, successor, 0.5, width=6)
    tokens, positions = np.array([3, 400], dtype=np.int32), np.array([9, 31], dtype=np.int32)
    chain = draft.greedy_chain(rows_of(tokens, positions), np.arange(16, 24, dtype=np.int32).reshape(2, 4))
    for step in range(5):
        found = draft.greedy(rows_of(tokens, positions + np.int32(step)))
        assert np.array_equal(chain[:, step], found)
        tokens = found.astype(np.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_planted_target_follows_its_successors_by_a_wide_margin(pairs: ModuleType, dtype: torch.dtype) -> None:
    model = pairs.random_model("tiny", torch.device("cpu"), dtype)
    successor = pairs.plant(model)
    tokens = np.random.default_rng(0).permutation(512)[:200]
    with torch.inference_mode():
        logits = model(torch.from_numpy(tokens)[None])[0].float()
    best = logits.topk(2, dim=1)
    assert best.indices[:, 0].tolist() == successor[tokens].tolist()
    assert (best.values[:, 0] - best.values[:, 1]).min() > 0.2 * best.values[:, 0].max()
    seen, token = set(), 0
    while token not in seen:
        seen.add(token)
        token = int(successor[token])
    assert len(seen) == 512
