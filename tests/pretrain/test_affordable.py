"""A budget of time gives a fit its steps, an ensemble its members and a comparison its runs, and names what lacks."""

from __future__ import annotations

import importlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.core.errors import ConfigError, InterruptedRunError
from forethought.data.packing import Batch
from forethought.nn import LanguageModel
from forethought.pretrain import FitConfig, Member, ModelShape, fit, seeds, train_members
from forethought.pretrain.affordable import StepPlan, plan_steps, step_seconds
from forethought.pretrain.continued import ContinueConfig, continue_training
from forethought.pretrain.objective import next_token_loss
from forethought.pretrain.study import MembersBudget
from forethought.train import LoopConfig, OptimiserConfig
from tests.pretrain.small import small_corpus, small_fit, small_members

fitting: Any = importlib.import_module("forethought.pretrain.fit")  # the room's face has a function of its name
afford: Any = importlib.import_module("forethought.pretrain.study.afford")
SIZES = {"num_parameters": 0, "num_held_out": 0, "num_counted": 0, "steps_per_epoch": 10.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("affordable"))


def whole(corpus: Path, steps: int = 400, **changes: Any) -> FitConfig:
    return small_fit(corpus, loop=LoopConfig(steps=steps, evaluate_every=0, checkpoint_every=20), **changes)


def test_steps_evaluations_saves_and_the_end_share_the_budget(corpus: Path):
    settings = small_fit(corpus, batch_size=2, context=16, evaluation_tokens=96)
    bare = replace(settings, loop=LoopConfig(steps=10_000, evaluate_every=0, checkpoint_every=0))
    # 100 s less the reserve of 5 s and two saves of 0.1 s, a step a second.
    assert plan_steps(bare, 100.0, 100.0, 1.0, **SIZES).steps == 94
    assert plan_steps(bare, 100.0, 60.0, 1.0, **SIZES).steps == 54
    # An evaluation of 96 tokens at a third of a step's 32 tokens a second takes a second.
    watched = replace(bare, loop=replace(bare.loop, evaluate_every=2))
    assert plan_steps(watched, 100.0, 100.0, 1.0, **SIZES).steps == 63
    # Ten million parameters are written in 1.2 s and the tenth that every save costs: at the end twice.
    saved = replace(bare, loop=replace(bare.loop, checkpoint_every=1))
    assert plan_steps(saved, 100.0, 100.0, 1.0, **SIZES | {"num_parameters": 10_000_000}).steps == 40
    assert plan_steps(replace(bare, loop=replace(bare.loop, accumulate=4)), 100.0, 100.0, 1.0, **SIZES).steps == 23
    assert plan_steps(bare, 100.0, 100.0, 1.0, **SIZES | {"num_held_out": 960}).steps == 84
    assert plan_steps(bare, 100.0, 100.0, 1.0, **SIZES | {"num_counted": 20_000_000}).steps == 74
    few = replace(bare, loop=replace(bare.loop, steps=30))
    plan = plan_steps(few, 100.0, 100.0, 1.0, **SIZES)
    assert (plan.steps, plan.epochs) == (30, 3.0)
    assert "nothing is left out" in str(plan)


def test_a_fit_takes_the_steps_that_it_can_afford(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fitting, "step_seconds", lambda *_: 1.0)
    told: list[StepPlan] = []
    settings = whole(corpus)
    result = fit(settings, tmp_path / "run", seconds=60.0, tell=told.append)
    assert 40 < told[0].steps == result["steps"] == result["budget"]["steps"] < 60
    assert f"left out: {400 - told[0].steps} steps" in str(told[0])
    # The rate falls to its end at the last step that is taken, as if only so many had been asked for.
    shorter = fit(whole(corpus, steps=told[0].steps), tmp_path / "same")
    assert shorter["test_loss"] == result["test_loss"]


def test_an_interrupted_fit_keeps_to_its_plan(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fitting, "step_seconds", lambda *_: 1.0)
    told: list[StepPlan] = []

    def stop(plan: StepPlan) -> None:
        told.append(plan)
        raise InterruptedRunError("by the test")

    with pytest.raises(InterruptedRunError):
        fit(whole(corpus), tmp_path / "run", seconds=60.0, tell=stop)
    monkeypatch.setattr(fitting, "step_seconds", lambda *_: 0.5)
    with pytest.raises(ConfigError, match=r"begun with a budget of 60 s .* a budget of 90 s needs a directory"):
        fit(whole(corpus), tmp_path / "run", seconds=90.0, exists="resume")
    assert fit(whole(corpus), tmp_path / "run", exists="resume")["steps"] == told[0].steps


def test_a_budget_that_affords_nothing_leaves_nothing(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fitting, "step_seconds", lambda *_: 1.0)
    with pytest.raises(ConfigError, match="a budget of 1 s affords no step"):
        fit(whole(corpus), tmp_path / "run", seconds=1.0)
    assert not (tmp_path / "run").exists()


def test_the_clock_runs_while_the_corpus_is_read(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, late = fitting.open_or_prepare, {"seconds": 0.0}

    def slowly(*given: Any) -> Any:
        late["seconds"] = 30.0
        return real(*given)

    monkeypatch.setattr(fitting, "open_or_prepare", slowly)
    monkeypatch.setattr(fitting, "step_seconds", lambda *_: 1.0)
    clock = time.monotonic
    monkeypatch.setattr(fitting.time, "monotonic", lambda: clock() + late["seconds"])
    assert fit(whole(corpus), tmp_path / "run", seconds=60.0)["steps"] < 28


def test_measuring_a_step_leaves_the_model_as_it_was(corpus: Path):
    settings = whole(corpus, optimiser=OptimiserConfig(lr=0.1))
    shape = settings.model.transformer(300, 64)
    model = LanguageModel(shape, seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(0)).numpy()
    made = Batch(batch[:, :-1], batch[:, 1:])
    taken = step_seconds(
        model, lambda m, b: next_token_loss(m, b, device=torch.device("cpu")), lambda _: made, settings
    )
    assert taken > 0.0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_ensemble_takes_the_members_that_it_can_afford(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = small_members(corpus, members=seeds(4))
    monkeypatch.setattr(afford, "member_seconds", lambda *_: 1.0)
    each = afford.guard_of(None, fitting.open_or_prepare(settings.fit, tmp_path, None), tmp_path).estimate(settings, 1)
    told: list[Any] = []
    budget = MembersBudget(2.5 * each / 0.95, time.monotonic(), tell=told.append)
    result = train_members(settings, tmp_path / "run", afford=budget)
    assert [member["seed"] for member in result["members"]] == [0, 1]
    assert (told[0].members, told[0].asked) == (2, 4)
    assert "left out: 2 members" in str(told[0])
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["members"] == 2
    with pytest.raises(ConfigError, match="affords no member"):
        train_members(settings, tmp_path / "none", afford=MembersBudget(0.5 * each, time.monotonic()))
    assert not (tmp_path / "none").exists()
    whole_run = train_members(replace(settings, members=(Member(seed=0), Member(seed=1))), tmp_path / "same")
    assert whole_run["members"][1]["report_loss"] == result["members"][1]["report_loss"]


def test_a_comparison_names_the_plain_runs_that_it_leaves_out_and_makes_them_later(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = train_members(small_members(corpus), tmp_path / "base") and tmp_path / "base" / "models" / "member-0"
    settings = ContinueConfig(
        fit=small_fit(corpus, evaluation_tokens=256, model=ModelShape(hidden_size=8, num_layers=1, num_heads=1)),
        base=str(base),
        data=512,
        epochs=1.0,
        members=2,
        plain_data=(512, 2048),
        group=2,
    )
    asked: list[int] = []

    def dear(own: Any, *_: Any) -> float:
        asked.append(own.fit.model.hidden_size)
        # Of the larger run alone the steps are dear.
        return 1e4 if own.train_tokens == 2048 else 1e-6

    monkeypatch.setattr(afford, "member_seconds", dear)
    result = continue_training(settings, tmp_path / "run", seconds=600.0)
    assert [row["data"] for row in result["plain"]] == [512]
    assert [item["name"][:22] for item in result["left_out"]] == ["3 members, 16x2, 2,048"]
    assert set(asked) == {16}, "the base gives the shape that is measured"
    again = continue_training(settings, tmp_path / "run", exists="resume")
    assert [row["data"] for row in again["plain"]] == [512, 2048]
    assert again["left_out"] == []
    assert again["recipe"] == result["recipe"]
