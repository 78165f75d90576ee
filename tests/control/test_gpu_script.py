"""The planning benchmark for accelerators: it runs from end to end on tiny models, and its plan can be captured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.diffusion.capture import NothingFromTheHost


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = REPOSITORY / "benchmarks" / "gpu" / "control.py"
    spec = importlib.util.spec_from_file_location("gpu_control", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return module


def test_it_runs_on_tiny_models(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["control.py", "--device", "cpu", "--tiny", "--json", "--out", str(out)])
    script.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures == json.loads(out.read_text())
    assert figures["float32"]["difference_from_fp32"] == 0.0
    # Narrow weights are really used, and do not change what is preferred by much.
    assert 0.0 < figures["bfloat16"]["difference_from_fp32"] < 0.1
    assert figures["training_windows_per_second"] > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_whole_plan_could_be_captured(script: ModuleType, precision: str) -> None:
    plan, inputs, _ = script.build(torch.device("meta"), True, precision)
    plan(**inputs)  # what is made once is made outside
    with NothingFromTheHost():
        actions, scores = plan(**inputs)
    assert actions.device.type == scores.device.type == "meta"
    assert scores.shape == (1, 64)
