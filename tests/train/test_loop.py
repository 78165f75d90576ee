"""The training loop: what a step does, what it records, when it evaluates, stops and saves."""

from __future__ import annotations

import copy
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from forethought.core.config import config
from forethought.core.errors import CheckpointError, ConfigError, StorageError, TrainingError
from forethought.core.faults import faults
from forethought.core.rng import torch_generator
from forethought.core.run import Run
from forethought.train import LoopConfig, OptimiserConfig, Parallel, Record, ScheduleConfig, build_optimisers, train

CONSTANT = ScheduleConfig(name="constant", warmup=0.0)
CPU = Parallel(torch.device("cpu"))


@config
class Settings:
    name: str = "test"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.open(tmp_path / "run", config=Settings(), recipe="test") as opened:
        yield opened


def model(*, dropout: float = 0.0) -> nn.Module:
    built = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2))
    weights = torch_generator(1, "test.weights")
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=weights) * 0.5)
    return built


def batch(index: int, rows: int = 4) -> tuple[Tensor, Tensor]:
    noise = torch_generator(2, "test.batches", index)
    return torch.randn(rows, 4, generator=noise), torch.randn(rows, 2, generator=noise)


def squared(module: nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    value = nn.functional.mse_loss(module(pair[0]), pair[1])
    return value, {"twice": 2 * value}


def fit(
    module: nn.Module,
    run: Run,
    loop: LoopConfig,
    *,
    batches: Callable[[int], Any] = batch,
    loss: Any = squared,
    evaluate: Any = None,
    optimiser: OptimiserConfig | None = None,
) -> list[Record]:
    built = build_optimisers(module, optimiser or OptimiserConfig(lr=0.01))
    return list(
        train(
            module,
            loss=loss,
            batches=batches,
            optimisers=built,
            run=run,
            settings=loop,
            seed=3,
            parallel=CPU,
            evaluate=evaluate,
        )
    )


def test_every_step_yields_a_record_and_logs_what_it_saw(run: Run) -> None:
    records = fit(model(), run, LoopConfig(steps=5, checkpoint_every=2, schedule=CONSTANT))
    assert [record.step for record in records] == [1, 2, 3, 4, 5]
    assert [record.checkpoint is not None for record in records] == [False, True, False, True, True]
    logged = run.metrics("train")
    assert [set(entry) for entry in logged] == [{"event", "step", "loss", "twice", "gradient_norm", "rate"}] * 5
    for record, entry in zip(records, logged, strict=True):
        assert float(record.loss) == entry["loss"] == record.metrics["loss"]
        assert entry["twice"] == pytest.approx(2 * entry["loss"])
    assert run.checkpoints.steps() == [4, 5]


def test_log_every_thins_the_records_and_always_keeps_the_last_and_the_saved(run: Run) -> None:
    fit(model(), run, LoopConfig(steps=11, log_every=4, checkpoint_every=5))
    assert [entry["step"] for entry in run.metrics("train")] == [4, 5, 8, 10, 11]


def test_a_step_is_the_textbook_step(run: Run) -> None:
    module = model()
    reference = copy.deepcopy(module)
    groups = [
        {"params": [p for p in reference.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in reference.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    fit(module, run, LoopConfig(steps=6, clip_norm=0.05, schedule=CONSTANT))
    for index in range(6):
        plain.zero_grad()
        squared(reference, batch(index))[0].backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
        assert float(norm) > 0.05
        plain.step()
        assert run.metrics("train")[index]["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)
    for ours, theirs in zip(module.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_rate_follows_the_schedule(run: Run) -> None:
    fit(model(), run, LoopConfig(steps=10, schedule=ScheduleConfig(name="trapezoid", warmup=0.2, cooldown=0.5)))
    rates = [entry["rate"] for entry in run.metrics("train")]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_accumulation_equals_one_big_batch(tmp_path: Path) -> None:
    def joined(index: int) -> tuple[Tensor, Tensor]:
        parts = [batch(index * 4 + micro) for micro in range(4)]
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    small, big = model(), model()
    for name, module, accumulate, batches in (("small", small, 4, batch), ("big", big, 1, joined)):
        with Run.open(tmp_path / name, config=Settings(), recipe="test") as run:
            loop = LoopConfig(steps=5, accumulate=accumulate, clip_norm=0.5, schedule=CONSTANT)
            fit(module, run, loop, batches=batches)
            losses = [entry["loss"] for entry in run.metrics("train")]
        if name == "small":
            before = losses
    assert losses == pytest.approx(before, rel=1e-5)
    for one, other in zip(small.parameters(), big.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_moving_average_has_its_closed_form(run: Run) -> None:
    module = model()
    trail = [copy.deepcopy(module.state_dict())]
    built = build_optimisers(module, OptimiserConfig(lr=0.01))
    loop = LoopConfig(steps=6, ema_decay=0.8, schedule=CONSTANT)
    for _ in train(module, loss=squared, batches=batch, optimisers=built, run=run, settings=loop, seed=3, parallel=CPU):
        trail.append(copy.deepcopy(module.state_dict()))
    latest = run.checkpoints.latest()
    assert latest is not None
    for name, tensor in latest.tensors("ema").items():
        expected = 0.8**6 * trail[0][name] + sum(0.2 * 0.8 ** (6 - step) * trail[step][name] for step in range(1, 7))
        assert torch.allclose(tensor, expected, atol=1e-6)


def test_the_average_is_evaluated_beside_the_weights_and_leaves_them_alone(run: Run) -> None:
    module = model()

    def evaluate(live: nn.Module) -> dict[str, float]:
        assert not live.training
        assert not torch.is_grad_enabled()
        return {"validation_loss": float(squared(live, batch(99))[0])}

    loop = LoopConfig(steps=4, ema_decay=0.9, evaluate_every=2, schedule=CONSTANT)
    records = fit(module, run, loop, evaluate=evaluate)
    assert [record.evaluation is not None for record in records] == [False, True, False, True]
    last = records[-1].evaluation
    assert last is not None
    assert last["validation_loss"] == pytest.approx(float(squared(module, batch(99))[0].detach()))
    averaged = model()
    latest = run.checkpoints.latest()
    assert latest is not None
    averaged.load_state_dict(latest.tensors("ema"))
    assert last["ema_validation_loss"] == pytest.approx(float(squared(averaged, batch(99))[0].detach()))
    assert module.training


def scripted(values: list[float]) -> Callable[[nn.Module], dict[str, float]]:
    left = iter(values)
    return lambda _: {"validation_loss": next(left)}


def test_early_stop_waits_for_patience_and_the_best_weights_come_back(run: Run) -> None:
    module = model()
    seen: dict[int, dict[str, Tensor]] = {}
    built = build_optimisers(module, OptimiserConfig(lr=0.01))
    loop = LoopConfig(steps=50, evaluate_every=1, patience=3, final="best", checkpoint_every=0)
    for record in train(
        module,
        loss=squared,
        batches=batch,
        optimisers=built,
        run=run,
        settings=loop,
        seed=3,
        parallel=CPU,
        evaluate=scripted([3.0, 2.0, 2.5, 1.0, 1.0, 1.5, 4.0, 0.1]),
    ):
        seen[record.step] = copy.deepcopy(module.state_dict())
    assert max(seen) == 7, "1.0 at step 4 was the best; an equal value is no improvement"
    assert all(torch.equal(tensor, seen[4][name]) for name, tensor in module.state_dict().items())
    assert run.checkpoints.steps() == [4, 7]


def test_final_last_keeps_the_last_weights(run: Run) -> None:
    module = model()
    fit(module, run, LoopConfig(steps=3, evaluate_every=1), evaluate=scripted([1.0, 2.0, 3.0]))
    latest = run.checkpoints.latest()
    assert latest is not None
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in latest.tensors("model").items())


def test_patience_without_evaluation_and_an_unknown_monitor_are_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="patience needs an evaluation to count; set evaluate_every"):
        LoopConfig(steps=2, patience=1)
    with pytest.raises(ConfigError, match="patience needs an evaluation to watch"):
        fit(model(), run, LoopConfig(steps=2, patience=1, evaluate_every=1))
    with pytest.raises(ConfigError, match="final='best' needs an evaluation to watch"):
        fit(model(), run, LoopConfig(steps=2, final="best"))
    with pytest.raises(ConfigError, match="monitor 'accuracy' is not evaluated; evaluated: validation_loss"):
        fit(model(), run, LoopConfig(steps=1, evaluate_every=1, monitor="accuracy"), evaluate=scripted([1.0]))


def test_a_loss_that_is_not_finite_stops_the_run_and_the_checkpoint_before_stays(run: Run) -> None:
    def breaking(module: nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        value, extra = squared(module, pair)
        return value * (math.nan if torch.equal(pair[0], batch(6)[0]) else 1.0), extra

    with pytest.raises(TrainingError, match=r"at step 7; lower the learning rate.*checkpoints"):
        fit(model(), run, LoopConfig(steps=10, checkpoint_every=3), loss=breaking)
    latest = run.checkpoints.latest()
    assert latest is not None
    assert latest.step == 6
    assert all(tensor.isfinite().all() for tensor in latest.tensors("model").values())


def test_no_checkpoint_is_made_of_weights_that_are_not_finite_when_records_are_thin(run: Run) -> None:
    def breaking(module: nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        value, extra = squared(module, pair)
        return value * (math.inf if torch.equal(pair[0], batch(3)[0]) else 1.0), extra

    with pytest.raises(TrainingError):
        fit(model(), run, LoopConfig(steps=20, log_every=10, checkpoint_every=2), loss=breaking)
    for step in run.checkpoints.steps():
        assert all(t.isfinite().all() for t in run.checkpoints.load(step).tensors("model").values())


def test_a_request_to_stop_saves_no_weights_that_are_not_finite(run: Run) -> None:
    def breaking(module: nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        value, extra = squared(module, pair)
        if torch.equal(pair[0], batch(3)[0]):
            os.kill(os.getpid(), signal.SIGTERM)
            value = value * math.nan
        return value, extra

    with pytest.raises(TrainingError, match="at step 4"):
        fit(model(), run, LoopConfig(steps=20, log_every=10, checkpoint_every=3), loss=breaking)
    assert run.checkpoints.steps() == [3]


def test_a_request_to_stop_saves_no_weights_that_an_endless_gradient_spoilt(run: Run) -> None:
    def breaking(module: nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        value, extra = squared(module, pair)
        if torch.equal(pair[0], batch(3)[0]):
            os.kill(os.getpid(), signal.SIGTERM)
            value = value + (value - value.detach()).sqrt()
        return value, extra

    with pytest.raises(TrainingError, match="a weight is nan at step 4"):
        fit(model(), run, LoopConfig(steps=20, log_every=10, checkpoint_every=3, clip_norm=None), loss=breaking)
    assert run.checkpoints.steps() == [3]


def test_an_evaluation_that_is_not_finite_is_named(run: Run) -> None:
    with pytest.raises(TrainingError, match=r"not finite \(validation_loss\)"):
        fit(model(), run, LoopConfig(steps=2, evaluate_every=1), evaluate=scripted([math.nan]))
    assert run.checkpoints.steps() == []


def test_an_evaluation_gives_every_part_its_own_mode_back(run: Run) -> None:
    module = model(dropout=0.5)
    module[2].eval()
    seen: list[bool] = []

    def watching(live: nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(live[2].training)
        assert live.training
        return squared(live, pair)

    fit(module, run, LoopConfig(steps=4, evaluate_every=2), loss=watching, evaluate=scripted([1.0, 2.0]))
    assert seen == [False] * 4


@pytest.mark.parametrize("extra", [{}, {"evaluate_every": 2, "ema_decay": 0.9}, {"precision": "bf16"}])
def test_training_leaves_global_randomness_and_defaults_alone(run: Run, extra: dict[str, Any]) -> None:
    module = model(dropout=0.5)
    torch.manual_seed(9)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_default_dtype()
    fit(module, run, LoopConfig(steps=4, **extra), evaluate=lambda _: {"validation_loss": 1.0})
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.get_default_dtype() == before[2]
    assert torch.is_grad_enabled()


def test_dropout_depends_on_the_seed_and_the_step_and_not_on_the_global_state(tmp_path: Path) -> None:
    def losses(name: str, noise: int) -> list[float]:
        torch.manual_seed(noise)
        with Run.open(tmp_path / name, config=Settings(), recipe="test") as run:
            fit(model(dropout=0.5), run, LoopConfig(steps=4), batches=lambda _: batch(0), optimiser=tiny_steps())
            return [entry["loss"] for entry in run.metrics("train")]

    one, two = losses("one", 1), losses("two", 2)
    assert one == two
    assert len(set(one)) == 4


def tiny_steps() -> OptimiserConfig:
    return OptimiserConfig(lr=1e-12)


def test_bf16_trains_with_fp32_weights_and_nearly_the_same_losses(tmp_path: Path) -> None:
    def losses(precision: Any) -> list[float]:
        seen: list[torch.dtype] = []

        def watching(module: nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            seen.append(module(pair[0]).dtype)
            return squared(module, pair)

        module = model()
        with Run.open(tmp_path / precision, config=Settings(), recipe="test") as run:
            fit(module, run, LoopConfig(steps=5, precision=precision), loss=watching)
            assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float32}
            assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
            return [entry["loss"] for entry in run.metrics("train")]

    exact, lowered = losses("fp32"), losses("bf16")
    assert lowered == pytest.approx(exact, rel=0.02)
    assert lowered != exact


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_compiled_training_follows_the_eager_one(tmp_path: Path) -> None:
    def losses(name: str, *, compiled: bool) -> list[float]:
        with Run.open(tmp_path / name, config=Settings(), recipe="test") as run:
            fit(model(), run, LoopConfig(steps=5, compile=compiled))
            return [entry["loss"] for entry in run.metrics("train")]

    assert losses("compiled", compiled=True) == pytest.approx(losses("eager", compiled=False), rel=1e-4)


def test_a_finished_run_trains_no_further_and_holds_its_weights(tmp_path: Path) -> None:
    loop = LoopConfig(steps=4)
    first, again = model(), model()
    with Run.open(tmp_path / "run", config=Settings(), recipe="test") as run:
        fit(first, run, loop)
    with Run.open(tmp_path / "run", config=Settings(), recipe="test", exists="resume") as run:
        assert fit(again, run, loop) == []
        assert len(run.metrics("train")) == 4
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", config=Settings(), recipe="test") as run:
        fit(model(), run, LoopConfig(steps=1))
    with Run.open(tmp_path / "run", config=Settings(), recipe="test", exists="resume") as run:
        other = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Dropout(0.0), nn.Linear(9, 2))
        with pytest.raises(CheckpointError, match=r"0\.weight has shape \(8, 4\), the model wants \(9, 4\)"):
            fit(other, run, LoopConfig(steps=2))
        with pytest.raises(CheckpointError, match=r"is of another model: .* is only in one of the two"):
            fit(nn.Sequential(nn.Linear(4, 2)), run, LoopConfig(steps=2))


def test_a_full_disk_stops_training_with_the_checkpoint_before_whole(run: Run) -> None:
    saves: list[str] = []

    def refuse(point: str) -> None:
        saves.append(point)
        if saves.count("save.begin") == 2 and point == "file.write":
            raise OSError(28, "No space left on device")

    with faults(refuse), pytest.raises(StorageError, match="No space left on device; nothing published before"):
        fit(model(), run, LoopConfig(steps=9, checkpoint_every=3))
    latest = run.checkpoints.latest()
    assert latest is not None
    assert latest.step == 3
