"""From episodes to trained parts: each its own run directory, optimiser, average and checkpoints, resumable alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from forethought.control.body import Body
from forethought.control.models import MODELS, ControlModel, ReturnValue, load_model, save_model
from forethought.control.models.stepwise import PLANNED
from forethought.control.training.config import PartConfig
from forethought.control.training.error import rollout_error, validation_loss, value_calibration
from forethought.core import files
from forethought.core.errors import ConfigError, InputError
from forethought.core.progress import track
from forethought.core.run import Exists, Run
from forethought.data.episodes import (
    Episodes,
    ReturnsToGo,
    WindowBatches,
    WindowConfig,
    WindowCutter,
    returns_to_go,
)
from forethought.train import Parallel, build_optimisers, train
from forethought.train.state import restore_module

INPUTS, MODEL = "inputs.json", "model"
_PREPARED_WINDOWS = 8192


@dataclass(frozen=True)
class Data:
    """Episodes to train on and episodes to judge on, with the discount and the penalty of the value's return."""

    train: Episodes
    validation: Episodes
    discount: float = 0.99
    termination_penalty: float = 0.0
    steady: bool = False

    def returns(self, episodes: Episodes) -> ReturnsToGo:
        """Return the returns to go of episodes as the value learns them."""
        tail_E: NDArray[np.float64] | None = None
        if self.steady:
            if not self.discount < 1.0:
                raise ConfigError("steady needs a discount below 1: a reward that goes on for ever has no sum")
            tail_E = episodes.returns / episodes.lengths / (1.0 - self.discount)
        return returns_to_go(
            episodes, discount=self.discount, termination_penalty=self.termination_penalty, tail_E=tail_E
        )


def fit_part(
    part: str,
    settings: PartConfig,
    data: Data,
    body: Body,
    out: Path | str,
    *,
    seed: int = 0,
    start: ControlModel | None = None,
    exists: Exists = "refuse",
    recipe: str = "custom",
    facts: Mapping[str, Any] | None = None,
) -> ControlModel:
    """Train one part in a run directory of its own and return it; the run's `model` holds it for `forethought.load`.

    `start` is a trained model to go on from (it is not changed); its model settings must be those given. A finished run
    that is resumed only opens its model.

    Raises:
        InputError: the data, the settings or the directory cannot be used.
        InterruptedRunError: interrupted and saved.
        TrainingError: the loss is no longer finite.
    """
    out = Path(out)
    run = Run.open(out, config=settings, recipe=recipe, exists=exists)
    with run:
        if run.result() is not None:
            return load_model(out / MODEL)
        try:
            _check_inputs(run, data, start, seed)
            model = _begin(part, settings, data, body, seed, start)
        except InputError:
            run.discard()
            raise
        return _Fit(part, model, settings, data, run, seed).execute(dict(facts or {}))


class _Fit:
    def __init__(self, part: str, model: ControlModel, settings: PartConfig, data: Data, run: Run, seed: int) -> None:
        self.part, self.model, self.settings, self.data, self.run, self.seed = part, model, settings, data, run, seed
        window = window_of(model, data.train)
        self.batches = WindowBatches(data.train, window, batch_size=settings.batch_size, seed=seed, stream=part)

    def execute(self, facts: dict[str, Any]) -> ControlModel:
        settings, model = self.settings, self.model
        model.train()
        records = train(
            model,
            loss=_model_loss,
            batches=self.batches.batch,
            optimisers=build_optimisers(model, settings.optimiser),
            run=self.run,
            settings=settings.loop,
            seed=self.seed,
            parallel=Parallel(torch.device("cpu")),
            evaluate=lambda _: {"validation_loss": self._validate()},
        )
        validation: float | None = None
        with track(f"train {self.part}", settings.loop.steps) as progress:
            for record in records:
                validation = (record.evaluation or {}).get("validation_loss", validation)
                progress.update(record.step, loss=record.metrics.get("loss"), validation=validation)
        self._take_average()
        model.eval()
        result = self._result(facts)
        save_model(model, self.run.directory / MODEL, facts=result, replace=True)
        self.run.write_result(result)
        return model

    def _validate(self) -> float:
        if isinstance(self.model, ReturnValue):
            returns = self.data.returns(self.data.validation)
            return value_calibration(self.model, self.data.validation, returns=returns, seed=self.seed)["error"]
        return validation_loss(self.model, self.data.validation, seed=self.seed)

    def _take_average(self) -> None:
        if self.settings.loop.ema_decay is None:
            return
        checkpoint = self.run.checkpoints.latest()
        if checkpoint is not None:
            own = checkpoint.tensors("model") | checkpoint.tensors("ema")
            restore_module(own, self.model, Parallel(torch.device("cpu")), source=str(checkpoint.directory))

    def _result(self, facts: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {
            "kind": "control.part",
            "part": self.part,
            "seed": self.seed,
            "steps": self.run.checkpoints.steps()[-1],
            "windows": self.batches.num_windows,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "validation_loss": self._validate(),
            "fingerprint": self.model.fingerprint(),
            **facts,
        }
        if self.model.part == "dynamics":
            result["rollout_error"] = rollout_error(self.model, self.data.validation).to_dict()
        return result


def window_of(model: ControlModel, episodes: Episodes) -> WindowConfig:
    """Return the windows that a model learns from; planned actions are cut along where the data has them."""
    extras = (PLANNED,) if PLANNED in episodes.arrays else ()
    return WindowConfig(history=model.settings.history, horizon=model.reach, extras=extras)


def _model_loss(model: nn.Module, batch: Any) -> Any:
    return model.loss(batch)  # pyright: ignore


def _begin(
    part: str, settings: PartConfig, data: Data, body: Body, seed: int, start: ControlModel | None
) -> ControlModel:
    model: ControlModel = MODELS[part](body, settings.model, seed=seed)
    if start is not None:
        if start.settings != settings.model or not start.body.same_as(body):
            raise ConfigError(
                "the model to go on from has other settings or another body; give its own `settings` and `body`"
            )
        model.load_state_dict(start.state_dict())
    else:
        cutter = WindowCutter(data.train, window_of(model, data.train))
        stride = max(1, len(cutter.anchors) // _PREPARED_WINDOWS)
        model.prepare(cutter.cut(cutter.anchors[::stride]))
    if isinstance(model, ReturnValue):
        model.learn_from(data.returns(data.train), discount=data.discount)
    return model


def _check_inputs(run: Run, data: Data, start: ControlModel | None, seed: int) -> None:
    """Refuse to resume on other data, another first model or seed: the batches would silently be others."""
    inputs = {
        "episodes": data.train.identity(),
        "start": None if start is None else start.fingerprint(),
        "seed": seed,
        "discount": data.discount,
        "termination_penalty": data.termination_penalty,
        **({"steady": True} if data.steady else {}),
    }
    path = run.directory / INPUTS
    if not path.exists():
        files.write_json(path, inputs)
        return
    recorded = files.read_json(path, what="run inputs")
    changed = sorted(name for name, value in inputs.items() if recorded.get(name) != value)
    if changed:
        raise ConfigError(
            f"{run.directory} was trained with other inputs ({', '.join(changed)} differ); give those, or start anew "
            "with --exists replace"
        )
