"""The members' benchmark: what it times is what it checked, and the tool's choice comes before the timing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from forethought.pretrain.members.speed import Speeds
from tests.conftest import REPOSITORY


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder = REPOSITORY / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("benchmark_pretrain", folder / "pretrain.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SHAPES", {"tiny_k3": (64, 1, 3, 2, 8)})
    monkeypatch.setattr(module, "VOCAB", 64)
    return module


@pytest.mark.parametrize("chosen", [1, 3])
def test_it_checks_losses_and_reports_what_the_tool_had_chosen(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, chosen: int
):
    times = {"plain": [2.0] * 6, "batched": [1.0] * 6, "alone": [4.0] * 6}
    monkeypatch.setattr(script, "measure_speeds", lambda *_, **__: Speeds({1: 1.0, 3: 1.0}, chosen))
    monkeypatch.setattr(script, "timed", lambda *_: times)
    figures = script.measure(True)
    assert 0.0 <= figures["loss_gap_tiny_k3"] <= 1e-5
    assert figures["batched_tiny_k3"] == 2.0
    assert figures["worst_taken"] == figures["taken_tiny_k3"] == (2.0 if chosen == 3 else 0.5)


def test_members_that_are_not_the_same_stop_the_run(script: ModuleType, monkeypatch: pytest.MonkeyPatch):
    separate: Callable[..., Any] = script.separate_steps

    def faster(settings: Any, shape: Any, count: int) -> Any:
        optimiser = replace(settings.fit.optimiser, lr=1.1 * settings.fit.optimiser.lr)
        return separate(replace(settings, fit=replace(settings.fit, optimiser=optimiser)), shape, count)

    monkeypatch.setattr(script, "separate_steps", faster)
    with pytest.raises(SystemExit, match=r"tiny_k3: a batched member's loss is .* from its own"):
        script.measure(True)


def test_arms_are_timed_in_turns(script: ModuleType):
    order: list[str] = []
    arms = {name: lambda name=name: order.append(name) or [] for name in ("a", "b", "c")}
    times = script.timed(arms, 4)
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b", "a", "b", "c"]
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4, "c": 4}
