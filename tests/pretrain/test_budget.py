"""A budget is of the whole time: reading and tokenising, steps, evaluations and saves; what it leaves out is named."""

from __future__ import annotations

import importlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import forethought.pretrain.study.budget as budget
from forethought.core.errors import ConfigError
from forethought.data import open_corpus
from forethought.pretrain import FrontierConfig, MembersConfig, StudyConfig, ladder
from forethought.pretrain.study.budget import Guard, Plan, evaluated_tokens, saves_of
from tests.pretrain.small import small_corpus, small_fit
from tests.pretrain.test_study import small_study

climbing: Any = importlib.import_module(
    "forethought.pretrain.study.ladder"
)  # the room's face has a function of its name


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(budget.time, "monotonic", made)
    return made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("budget"))


def guard(seconds: float | None, clock: Clock, **changes: Any) -> Guard:
    """Return a guard for steps of a second and 10 windows of data."""
    values: dict[str, Any] = {"member_seconds": lambda _: 1.0, "windows": lambda _: 10} | changes
    return Guard(seconds, started=clock.now, **values)


def settings_of(place: Path, **loop: Any) -> MembersConfig:
    """Return settings of 20 steps: two passes of 10 windows, one window a batch."""
    fit = small_fit(place, batch_size=1, context=32, evaluation_tokens=32)
    return MembersConfig(fit=replace(fit, loop=replace(fit.loop, **loop)), epochs=2.0)


def test_an_estimate_counts_steps_evaluations_and_saves(clock: Clock, tmp_path: Path):
    bare = settings_of(tmp_path, checkpoint_every=0, evaluate_every=0)
    watched = guard(None, clock)
    held_out = 4 / 3  # four slices of one window at a third of a step each
    assert evaluated_tokens(bare, 20) == 4 * 32
    assert watched.estimate(bare, 1) == pytest.approx(20 + held_out + 2 * 0.1)
    assert watched.estimate(bare, 6) == pytest.approx(6 * watched.estimate(bare, 1))
    assert guard(None, clock, workers=2).estimate(bare, 6) == pytest.approx(3 * watched.estimate(bare, 1))
    often = settings_of(tmp_path, checkpoint_every=5, evaluate_every=2)
    assert watched.estimate(often, 1) == pytest.approx(20 + 14 / 3 + 6 * 0.1)
    large = guard(None, clock, parameters=lambda _: 10**8)
    assert large.estimate(often, 1) == pytest.approx(20 + 14 / 3 + 6 * (0.1 + 12.0))
    assert saves_of(replace(often, frontier=FrontierConfig(cycles=4)), 20) == 6 + 3
    assert saves_of(replace(often, frontier=FrontierConfig(last_k=3)), 20) == 6 + 3


def test_what_was_spent_before_the_first_step_is_gone(clock: Clock, tmp_path: Path):
    bare = settings_of(tmp_path, checkpoint_every=0, evaluate_every=0)
    watched = guard(100.0, clock)
    assert watched.remaining == pytest.approx(95.0), "a twentieth is kept for the laws"
    assert guard(1000.0, clock).remaining == pytest.approx(985.0)
    clock.now += 60.0
    assert watched.remaining == pytest.approx(35.0)
    assert watched(bare, 1)
    clock.now += 21.6
    assert not watched(bare, 1)
    (refused,) = watched.refused
    assert refused.name == "1 members, 16x2, 0 tokens, 2 epochs"
    assert guard(None, clock).remaining is None


def test_estimates_learn_from_what_members_took(clock: Clock, tmp_path: Path):
    bare = settings_of(tmp_path, checkpoint_every=0, evaluate_every=0)
    watched = guard(200.0, clock)
    thought = watched.estimate(bare, 1)
    for _ in range(2):
        assert watched(bare, 1)
        clock.now += 3.0 * thought
    assert not watched(bare, 1), "three times as slow as thought: a third one would not end in time"
    assert watched.correction == pytest.approx(3.0)
    assert watched.estimate(bare, 1) == pytest.approx(3.0 * thought)
    assert watched.refused[0].seconds == pytest.approx(3.0 * thought)


def test_a_ladder_counts_the_time_of_its_corpus(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = small_study(corpus, recipes=("regularised",), sizes=small_study(corpus).sizes[:1])
    late = {"seconds": 0.0}
    real, prepare = time.monotonic, climbing.open_or_prepare

    def slowly(*given: Any) -> Any:
        late["seconds"] += 1000.0
        return prepare(*given)

    monkeypatch.setattr(budget.time, "monotonic", lambda: real() + late["seconds"])
    monkeypatch.setattr(climbing, "open_or_prepare", slowly)
    plans: list[Plan] = []
    with pytest.raises(ConfigError, match="affords not even the first rung"):
        ladder(study, tmp_path / "late", seconds=1010.0, planned=plans.append)
    assert [item.name for item in plans[0].left_out] == ["regularised, 8x1, 1,024 tokens"]
    result = ladder(study, tmp_path / "soon", seconds=1300.0, planned=plans.append)
    assert [item.name for item in plans[1].taken] == ["regularised, 8x1, 1,024 tokens"]
    assert result["left_out"] == []


def test_a_ladder_names_the_rungs_that_its_time_leaves_out(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    small = small_study(corpus, recipes=("regularised",))
    study: StudyConfig = replace(small, sizes=(*small.sizes, replace(small.sizes[0], hidden_size=12)))
    monkeypatch.setattr(climbing.Climb, "_member_seconds", lambda _, settings: settings.fit.model.hidden_size**2 / 1e3)
    whole = plan_of(study, corpus, tmp_path, 1e6)
    assert whole.left_out == ()
    first, _, third = (item.seconds for item in whole.taken)
    cut = plan_of(study, corpus, tmp_path, (first + third + 0.5) / 0.95)
    assert [item.name for item in cut.taken] == [f"regularised, {each}x1, 1,024 tokens" for each in (8, 12)]
    assert [item.name for item in cut.left_out] == ["regularised, 16x1, 1,024 tokens"]


def plan_of(study: StudyConfig, corpus: Path, place: Path, seconds: float) -> Plan:
    """Return what a ladder would plan for a budget."""
    work = climbing.Climb(study, open_corpus(corpus), place, seconds, lambda _: None)
    return work.plan(work.guard.remaining)
