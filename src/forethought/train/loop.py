"""The one loop of the library: batches are a function of the step, so a resumed run repeats every bit of a whole one.

Nothing here knows what is trained. A room gives a module, a loss over (module, batch), batches by step, optimisers, a
run, and perhaps an evaluation; it gets a record a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from forethought.core.config import config
from forethought.core.errors import ConfigError, InterruptedRunError, TrainingError
from forethought.core.faults import fault
from forethought.core.rng import derive_seed
from forethought.core.run import Run
from forethought.train.interrupt import stop_requests
from forethought.train.optim import Optimisers
from forethought.train.parallel import Parallel
from forethought.train.schedule import ScheduleConfig, multiplier
from forethought.train.state import Average, capture, restore, restore_module

Batch = TypeVar("Batch")
Loss = Callable[[nn.Module, Batch], tuple[Tensor, Mapping[str, Tensor]]]
Evaluation = Callable[[nn.Module], Mapping[str, float]]


@config
class LoopConfig:
    """How long and how to train; periods are in steps, 0 turns a period off (the last step always counts)."""

    steps: int = Field(default=1000, ge=1)
    """Optimiser steps of the whole run; one schedule spans them all."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches a step."""
    clip_norm: float | None = Field(default=1.0, gt=0.0)
    """Scale the gradients down to this joint norm; None: never."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the arithmetic; weights and optimiser stay in fp32."""
    compile: bool = False
    """Compile the model with torch.compile (needs a C++ compiler)."""
    ema_decay: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Keep an exponential moving average of the weights beside them."""
    log_every: int = Field(default=1, ge=1)
    """Steps between training records."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between evaluations."""
    checkpoint_every: int = Field(default=200, ge=0)
    """Steps between checkpoints."""
    monitor: str = "validation_loss"
    """The evaluated figure that decides which step is best; lower is better."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations without a better one."""
    final: Literal["last", "best"] = "last"
    """Which weights the run ends with."""
    schedule: ScheduleConfig = ScheduleConfig()

    def __post_init__(self) -> None:
        if self.patience is not None and not self.evaluate_every:
            raise ConfigError("patience needs an evaluation to count; set evaluate_every, or leave patience out")


@dataclass(frozen=True)
class Record:
    """One step: how many are done, its loss and figures, the evaluation and the checkpoint where there was one."""

    step: int
    loss: Tensor
    metrics: Mapping[str, float]
    evaluation: Mapping[str, float] | None
    checkpoint: Path | None


def train(
    module: nn.Module,
    *,
    loss: Loss[Batch],
    batches: Callable[[int], Batch],
    optimisers: Optimisers,
    run: Run,
    settings: LoopConfig,
    seed: int,
    parallel: Parallel,
    model: nn.Module | None = None,
    evaluate: Evaluation | None = None,
    fallback: bool = False,
) -> Iterator[Record]:
    """Train from the run's newest checkpoint, or from the start, and yield a record a step.

    `module` owns the parameters; `model` is what the strategy's `wrap` made of it, to be called (default: the module).
    `batches(i)` returns micro-batch i of the run; a step takes `accumulate` of them. A step whose settings say so ends
    with an evaluation and a checkpoint. Afterwards the module holds the last weights, or the best by `monitor`.

    Raises:
        ConfigError: patience or the best weights are asked for without an evaluation, or monitor is not evaluated.
        TrainingError: the loss is no longer finite.
        InterruptedRunError: SIGINT or SIGTERM came; the run was saved and resumes to the same bits.
        CheckpointError: the newest checkpoint is damaged and fallback is False.
        StorageError: the disk refused; the last checkpoint is whole.
    """
    if evaluate is None and (settings.patience is not None or settings.final == "best"):
        wish = "final='best'" if settings.patience is None else "patience"
        raise ConfigError(f"{wish} needs an evaluation to watch; give evaluate, or leave it out")
    session = _Session(
        module, module if model is None else model, loss, batches, optimisers, run, settings, seed, parallel, evaluate
    )
    session.resume(fallback=fallback)
    with stop_requests() as stop:
        while session.step < settings.steps and not session.exhausted:
            record = session.advance()
            if parallel.any(stop.requested):
                session.check({"loss": float(parallel.mean(record.loss))})
                session.check_weights()
                session.save()
                raise InterruptedRunError(
                    f"interrupted after step {session.step} of {settings.steps}; saved in {run.directory}; "
                    "run the same command with --exists resume to go on"
                )
            yield record
    session.finish()


class _Session:
    """The state of one `train` call: where it stands and what it holds."""

    def __init__(
        self,
        module: nn.Module,
        model: nn.Module,
        loss: Loss[Any],
        batches: Callable[[int], Any],
        optimisers: Optimisers,
        run: Run,
        settings: LoopConfig,
        seed: int,
        parallel: Parallel,
        evaluate: Evaluation | None,
    ) -> None:
        self.module, self.loss, self.batches, self.optimisers = module, loss, batches, optimisers
        self.run, self.settings, self.seed, self.parallel, self.evaluate = run, settings, seed, parallel, evaluate
        self.wrapped = model
        self.model: nn.Module = torch.compile(model) if settings.compile else model  # pyright: ignore
        self.average = Average(module, settings.ema_decay) if settings.ema_decay else None
        self.parameters = list(optimisers.parameters())
        self.step = 0
        self.best_value = math.inf
        self.best_step: int | None = None
        self.stale = 0
        self._saved_step = 0
        parallel.prepare(optimisers.members)
        self._clock = time.perf_counter()

    @property
    def exhausted(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.stale >= patience

    def resume(self, *, fallback: bool) -> None:
        checkpoint = self.run.checkpoints.latest(fallback=fallback)
        if checkpoint is None:
            self.run.rewind({})
            return
        restore(checkpoint, self.module, self.optimisers, self.average, self.parallel)
        state = checkpoint.state
        self.step, self.stale, self.best_step = checkpoint.step, state["stale"], state["best_step"]
        self.best_value = math.inf if state["best_value"] is None else state["best_value"]
        self._saved_step = self.step
        self.run.rewind(state["position"])

    def advance(self) -> Record:
        fault("train.step")
        settings = self.settings
        factor = multiplier(self.step, settings.steps, settings.schedule)
        self.optimisers.set_rate(factor)
        total, figures = self._accumulate()
        # Without clipping the norm is still taken before a checkpoint: it tells whether the new weights are finite.
        saves = self._due(settings.checkpoint_every, after=1)
        limit = settings.clip_norm or (math.inf if saves else None)
        norm = None if limit is None else self.parallel.clip(self.parameters, limit)
        self.optimisers.step()
        self.optimisers.zero_grad()
        if self.average is not None:
            self.average.update()
        self.step += 1
        # A checkpoint is never written before its step's loss was seen to be finite.
        logs = self._due(settings.log_every) or self._due(settings.checkpoint_every)
        metrics = self._log(total, figures, norm, factor) if logs else {}
        evaluation = self._evaluate() if self._due(settings.evaluate_every) else None
        improved = evaluation is not None and self._judge(evaluation)
        keeps_best = improved and (settings.patience is not None or settings.final == "best")
        checkpoint = self.save() if self._due(settings.checkpoint_every) or keeps_best else None
        return Record(self.step, total, metrics, evaluation, checkpoint)

    def save(self) -> Path | None:
        tensors = capture(self.module, self.optimisers, self.average, self.parallel)
        path: Path | None = None
        if self.parallel.is_main:
            state = {
                "best_step": self.best_step,
                "best_value": self.best_value if math.isfinite(self.best_value) else None,
                "stale": self.stale,
                "position": self.run.position(),
            }
            path = self.run.checkpoints.save(self.step, tensors, state, best_step=self.best_step)
        self.parallel.barrier()
        self._saved_step = self.step
        return path

    def check(self, metrics: Mapping[str, float]) -> None:
        odd = sorted(name for name, value in metrics.items() if not math.isfinite(value))
        if odd:
            raise TrainingError(
                f"{odd[0].replace('_', ' ')} is {metrics[odd[0]]} at step {self.step}; lower the learning rate, or "
                f"clip harder, in a new run; the last good checkpoints are kept in {self.run.checkpoints.directory}"
            )

    def check_weights(self) -> None:
        """Look at the weights themselves, where no gradient's norm has vouched for them."""
        for tensor in self.parameters:
            if not bool(self.parallel.full(tensor.detach().isfinite().all())):
                self.check({"a weight": math.nan})

    def finish(self) -> None:
        # Asked of memory, not of the disk, where another rank may already have saved: all ranks must decide alike.
        if self.exhausted and self.step != self._saved_step:
            self.save()
        if self.settings.final == "best" and self.best_step not in (None, self.step):
            best = self.run.checkpoints.load(self.best_step)
            restore_module(best.tensors("model"), self.module, self.parallel, source=str(best.directory))

    def _due(self, period: int, *, after: int = 0) -> bool:
        step = self.step + after
        return step == self.settings.steps or (period > 0 and step % period == 0)

    def _accumulate(self) -> tuple[Tensor, dict[str, Tensor]]:
        count = self.settings.accumulate
        total = torch.zeros((), device=self.parallel.device)
        figures: dict[str, Tensor] = {}
        for micro in range(count):
            last = micro == count - 1
            with nullcontext() if last else self.parallel.accumulating(self.wrapped):
                value, extra = self._backward(self.step * count + micro)
            total = total + value
            for name, figure in extra.items():
                figures[name] = figures.get(name, torch.zeros_like(figure)) + figure.detach() / count
        return total, figures

    def _backward(self, index: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        settings, device = self.settings, self.parallel.device
        lowered = torch.autocast(device.type, torch.bfloat16) if settings.precision == "bf16" else nullcontext()
        on_device = [device] if device.type != "cpu" else []
        # Dropout and the like draw from torch's global generator; here it is a function of (seed, index, rank), and the
        # caller's state comes back, so that a resumed run needs no saved generator.
        with torch.random.fork_rng(devices=on_device, device_type=device.type):
            seed = derive_seed(self.seed, "train.noise", index, self.parallel.rank)
            # Not torch.manual_seed: it would seed every device, and fork_rng gives back only this one's state.
            torch.default_generator.manual_seed(seed)
            if on_device:
                torch.get_device_module(device).manual_seed(seed)
            with lowered:
                value, extra = self.loss(self.model, self.batches(index))
            (value / settings.accumulate).backward()
        return value.detach() / settings.accumulate, extra

    def _log(
        self, total: Tensor, figures: dict[str, Tensor], norm: Tensor | None, factor: float
    ) -> Mapping[str, float]:
        metrics = {"loss": float(self.parallel.mean(total))}
        metrics |= {name: float(self.parallel.mean(figure)) for name, figure in figures.items()}
        if norm is not None:
            metrics["gradient_norm"] = float(norm)
        self.check(metrics)
        now = time.perf_counter()
        timing = {"step": self.step, "seconds": now - self._clock}
        self._clock = now
        self.run.log({"event": "train", "step": self.step, **metrics, "rate": factor}, timing=timing)
        return metrics

    def _evaluate(self) -> Mapping[str, float] | None:
        if self.evaluate is None:
            return None
        modes = [(part, part.training) for part in self.module.modules()]
        self.module.eval()
        with torch.no_grad():
            figures = self.parallel.mean_figures(self.evaluate(self.model))
            if self.average is not None:
                with self.average.swapped():
                    average = self.parallel.mean_figures(self.evaluate(self.model))
                    figures |= {f"ema_{name}": value for name, value in average.items()}
        for part, training in modes:
            part.training = training
        self.run.log({"event": "evaluation", "step": self.step, **figures})
        return figures

    def _judge(self, evaluation: Mapping[str, float]) -> bool:
        name = self.settings.monitor
        if name not in evaluation:
            raise ConfigError(f"monitor {name!r} is not evaluated; evaluated: {', '.join(sorted(evaluation))}")
        if evaluation[name] < self.best_value:
            self.best_value, self.best_step, self.stale = evaluation[name], self.step, 0
            return True
        self.stale += 1
        return False
