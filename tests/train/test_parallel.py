"""One run over 1 and 2 processes: DDP and FSDP2 on real gloo groups that torchrun starts, against a single process."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from forethought.core.errors import ConfigError
from forethought.train.parallel import Parallel, open_parallel

PROGRAM = Path(__file__).parent / "programs" / "small_training.py"
AVERAGED = {"accumulate": 2, "ema": 0.8}
MUON = {"optimiser": "muon"}
BEST = {"final": "best", "patience": 2, "uneven_evaluation": True, "steps": 8}
CLOSE = 1e-5

# name: strategy of the second half, run that it goes on from, other settings; all on two processes
ON_TWO: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "ddp": ("ddp", None, AVERAGED),
    "fsdp": ("fsdp", None, AVERAGED),
    "one to ddp": ("ddp", "one", AVERAGED),
    "one to fsdp": ("fsdp", "one", AVERAGED),
    "ddp to fsdp": ("fsdp", "ddp", AVERAGED),
    "fsdp to ddp": ("ddp", "fsdp", AVERAGED),
    "muon ddp": ("ddp", None, MUON),
    "muon fsdp": ("fsdp", None, MUON),
    "muon fsdp again": ("fsdp", "muon fsdp", MUON),
    "uneven": ("ddp", None, BEST),
}


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("small_training", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["small_training"] = module
    spec.loader.exec_module(module)
    return module


def job(root: Path, name: str, strategy: str, source: str | None, extra: dict[str, Any]) -> dict[str, Any]:
    copied = {"copy_from": str(root / source)} if source else {}
    return {"directory": str(root / name), "strategy": strategy, **copied, **extra}


def torchrun(plan: Path, jobs: list[dict[str, Any]], *, seconds: float = 200.0) -> subprocess.CompletedProcess[str]:
    plan.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    with subprocess.Popen(
        [*command, "--nproc-per-node", "2", str(PROGRAM), str(plan)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, "", errors)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, program: ModuleType) -> Path:
    """All runs of this file: one process, then two, then one again from what two left."""
    root = tmp_path_factory.mktemp("runs")
    for name, extra in (("one", AVERAGED), ("muon", MUON)):
        program.perform(program.Job(**job(root, name, "none", None, extra)))
    done = torchrun(root / "plan.json", [job(root, name, *ON_TWO[name]) for name in ON_TWO])
    assert done.returncode == 0, done.stderr
    for source in ("ddp", "fsdp"):
        program.perform(program.Job(**job(root, f"{source} to one", "none", source, AVERAGED)))
    return root


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def largest_metric_difference(left: Path, right: Path) -> float:
    pairs = list(zip(records(left), records(right), strict=True))
    assert all(a.keys() == b.keys() for a, b in pairs)
    return max(abs(a[name] - b[name]) for a, b in pairs for name in a if isinstance(a[name], float))


def largest_tensor_difference(left: Path, right: Path, group: str) -> float:
    a, b = (
        safetensors.torch.load_file(path / "checkpoints" / "step-00000006" / f"{group}.safetensors")
        for path in (left, right)
    )
    assert a.keys() == b.keys()
    assert all(a[name].shape == b[name].shape for name in a)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize(
    "name", [*(n for n in ON_TWO if "muon" not in n and n != "uneven"), "ddp to one", "fsdp to one"]
)
def test_every_strategy_and_every_change_of_it_gives_the_single_process_run(name: str, runs: Path) -> None:
    assert len(records(runs / name)) == 8
    assert largest_metric_difference(runs / "one", runs / name) <= CLOSE
    for group in ("model", "ema", "optimizer"):
        assert largest_tensor_difference(runs / "one", runs / name, group) <= CLOSE


@pytest.mark.parametrize("name", ["muon ddp", "muon fsdp", "muon fsdp again"])
def test_muon_sees_whole_matrices_under_every_strategy(name: str, runs: Path) -> None:
    assert largest_metric_difference(runs / "muon", runs / name) <= CLOSE
    for group in ("model", "optimizer"):
        assert largest_tensor_difference(runs / "muon", runs / name, group) <= CLOSE


def test_ranks_that_evaluate_differently_still_decide_alike(runs: Path) -> None:
    # The two figures are c and -c/2 after c calls, so their mean c/4 worsens: step 1 is best and patience ends at 3.
    evaluations = [record for record in records(runs / "uneven") if record["event"] == "evaluation"]
    assert [record["validation_loss"] for record in evaluations] == [0.25, 0.5, 0.75]


def test_the_tied_matrix_is_saved_once(runs: Path) -> None:
    saved = safetensors.torch.load_file(runs / "fsdp" / "checkpoints" / "step-00000006" / "model.safetensors")
    assert "embedding.weight" in saved
    assert "head.weight" not in saved


@pytest.mark.parametrize(
    ("victim", "timeout", "sign"),
    [
        ("killed", 300.0, "Signal 9"),
        ("silent", 5.0, "TrainingError: rank 0: another process of this run died or did not answer within 5 s"),
    ],
)
def test_a_lost_rank_ends_the_others(victim: str, timeout: float, sign: str, tmp_path: Path) -> None:
    lost = {"directory": str(tmp_path / "run"), "strategy": "ddp", "victim": victim, "timeout": timeout}
    done = torchrun(tmp_path / "plan.json", [lost], seconds=150)
    assert done.returncode != 0
    assert sign in done.stderr


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_outside_torchrun_the_error_says_how_to_start(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node"), open_parallel(strategy):
        pass


def test_a_strategy_that_ignores_the_other_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="choose ddp or fsdp"), open_parallel("none"):
        pass
    with pytest.raises(ConfigError, match="Did you mean 'ddp'"), open_parallel("dpp"):
        pass


def test_a_single_process_needs_no_group() -> None:
    parallel = Parallel(torch.device("cpu"))
    value = torch.tensor(2.5)
    assert parallel.mean(value) is value
    assert parallel.full(value) is value
    assert parallel.any(True)
    assert not parallel.any(False)
    assert parallel.mean_figures({"b": 1.0, "a": 2.0}) == {"b": 1.0, "a": 2.0}
    parallel.barrier()


@pytest.mark.parametrize("name", ["banana", "cuda:97"])
def test_a_device_that_is_not_there_is_bad_input(name: str) -> None:
    with pytest.raises(ConfigError, match=f"the device '{name}' cannot be used here"), open_parallel("none", name):
        pass
