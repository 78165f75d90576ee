"""The pre-training benchmark for one GPU runs its whole path on a CPU with tiny shapes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from forethought.nn import load_language_model, num_parameters
from tests.app.workshop import small_text
from tests.conftest import REPOSITORY


@pytest.fixture
def script() -> ModuleType:
    path = REPOSITORY / "benchmarks" / "gpu" / "pretrain.py"
    spec = importlib.util.spec_from_file_location("gpu_pretrain", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_whole_script_runs_on_a_cpu(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = small_text(tmp_path / "text.jsonl", 120)
    monkeypatch.setattr(script, "SHARD_BYTES", 30_000)
    given = ["--tiny", "--corpus", str(text), "--out", str(tmp_path / "out"), "--steps", "4", "--rows", "2"]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *given])
    script.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures == json.loads((tmp_path / "out" / "pretrain.json").read_text())
    assert figures["shapes"]["tiny"]["tokens_per_second"] > 0
    assert 0 < figures["shapes"]["tiny"]["mfu"] < 1
    assert figures["members"]["64x2"]["best"] in (1, 2)
    for name in ("target", "draft"):
        place = tmp_path / "out" / "pair" / name
        shards = sorted(place.glob("model-*.safetensors"))
        assert len(shards) > 1
        trained, published = load_language_model(tmp_path / "out" / name), load_language_model(place)
        for (_, own), (_, other) in zip(trained.named_parameters(), published.named_parameters(), strict=True):
            assert torch.equal(own.to(torch.bfloat16), other.to(torch.bfloat16))
        assert figures["pair"][name]["parameters"] == num_parameters(published.config).total
        assert "## Leak check" in (place / "README.md").read_text()
    assert figures["pair"]["target"]["parameters"] > figures["pair"]["draft"]["parameters"]


def test_the_shapes_are_the_papers_and_the_pair_is_of_the_size_asked_for(script: ModuleType) -> None:
    sizes = {name: num_parameters(script.paper_shape(name, tiny=False)).total for name in script.PAPER}
    assert {name: round(size / 1e6, 1) for name, size in sizes.items()} == {"150m": 154.1, "300m": 299.6}
    target = num_parameters(script.TARGET.transformer(8192, 2048)).total
    assert 20e6 <= target <= 40e6
    for shape in (script.TARGET, script.DRAFT):
        assert shape.hidden_size // shape.num_heads == 64
