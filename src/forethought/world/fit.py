"""From episodes to a trained, recalibrated, exported world model in one resumable run directory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forethought.core import files
from forethought.core.errors import ConfigError, DataError, InputError, TrainingError
from forethought.core.progress import track
from forethought.core.run import Exists, Run
from forethought.data import Episodes, WindowCutter, split_by_episode
from forethought.train import Parallel, build_optimisers, open_parallel, open_run, train
from forethought.train.state import gather, module_tensors, restore_module
from forethought.world.artefact import save_world_model
from forethought.world.config import WorldFitConfig
from forethought.world.data import (
    Windows,
    action_statistics,
    check_frames,
    set_statistics,
    window_of,
    without_frames,
)
from forethought.world.distributed import alone
from forethought.world.layers import recalibrate
from forethought.world.model import WorldModel
from forethought.world.monitors import collapse_reason, latent_figures, predict_windows
from forethought.world.objective import prediction_loss, world_loss

INPUTS = "inputs.json"
COLLAPSE = "world.collapse"
"""The kind of the result of a run that the alarm stopped."""


def fit_world(
    settings: WorldFitConfig,
    episodes: Episodes,
    out: Path | str,
    *,
    recipe: str = "custom",
    recipe_config: WorldFitConfig | None = None,
    exists: Exists = "refuse",
    fallback: bool = False,
    title: str = "world",
) -> dict[str, Any]:
    """Train on episodes with `frames` and `actions`, evaluate on held-out ones, export; return what result.json holds.

    Image size and action width are the data's. A finished run that is resumed returns its result at once. A run that
    the alarm stopped keeps the reason and the last figures as its result, and fails with the same reason again.

    Raises:
        InputError: the episodes, the config or the directory cannot be used.
        InterruptedRunError: interrupted and saved.
        TrainingError: the loss is no longer finite, or the latents collapsed and the alarm says stop.
    """
    out = Path(out)
    settings = fitted_to(settings, episodes)
    # Bad data must cost nothing: they are found before a directory is made, or emptied to be replaced.
    check_frames(episodes, settings.model)
    action_statistics(episodes)
    for part in split_episodes(without_frames(episodes), settings).values():
        WindowCutter(part, window_of(settings.model))
    with open_parallel(settings.parallel, settings.device) as parallel:
        run = open_run(
            parallel,
            out,
            config=settings,
            recipe=recipe,
            recipe_config=recipe_config,
            exists=exists,
            allow=("parallel", "device"),
        )
        with run:
            finished = run.result()
            if finished is not None:
                if finished["kind"] == COLLAPSE:
                    raise TrainingError(finished["message"])
                return finished
            try:
                work = _Fit(settings, episodes, run, parallel)
                if parallel.is_main:
                    _check_inputs(run, episodes)
            except InputError:
                run.discard()
                raise
            return work.execute(title=title, fallback=fallback, recipe=recipe)


def fitted_to(settings: WorldFitConfig, episodes: Episodes) -> WorldFitConfig:
    """Return settings whose model reads the frames and actions that the episodes hold.

    Raises:
        DataError: the episodes hold no square frames or no actions.
    """
    frames, actions = episodes.array("frames"), episodes.array("actions")
    if frames.ndim != 4 or frames.shape[1] != frames.shape[2] or actions.ndim != 2 or not actions.shape[1]:
        raise DataError(
            f"{episodes.source}: frames are {frames.shape[1:]} and actions {actions.shape[1:]} a step; a world model "
            "reads square frames (S, S, 3) and actions (A,)"
        )
    changed = dataclasses.replace(settings.model, image_size=frames.shape[1], action_dim=actions.shape[1])
    return dataclasses.replace(settings, model=changed)


def split_episodes(episodes: Episodes, settings: WorldFitConfig) -> dict[str, Episodes]:
    """Return the parts `train` and `held_out` that a run with these settings uses; whole episodes, by the seed."""
    fractions = {"train": 1.0 - settings.held_out, "held_out": settings.held_out}
    return split_by_episode(episodes, seed=settings.seed, fractions=fractions)


class _Fit:
    """One run under way: its model, its data and where its results go."""

    def __init__(self, settings: WorldFitConfig, episodes: Episodes, run: Run, parallel: Parallel) -> None:
        self.settings, self.run, self.parallel = settings, run, parallel
        self.identity = episodes.identity()
        check_frames(episodes, settings.model)
        parts = split_episodes(episodes, settings)
        self.statistics = action_statistics(parts["train"])
        self.module = WorldModel(settings.model, seed=settings.seed)
        set_statistics(self.module, self.statistics)
        self.module.to(parallel.device)
        self.windows = Windows(
            parts["train"],
            self.module,
            batch_size=settings.batch_size,
            seed=settings.seed,
            rank=parallel.rank,
            world_size=parallel.world_size,
        )
        self.calibration = self.windows.spread(settings.calibration_windows, batch=settings.batch_size)
        held = Windows(parts["held_out"], self.module, batch_size=parallel.world_size, seed=settings.seed)
        self.held_out = held.spread(settings.evaluation_windows, batch=settings.batch_size)
        self.counts = {name: {"episodes": part.num_episodes, "steps": part.num_steps} for name, part in parts.items()}

    def execute(self, *, title: str, fallback: bool, recipe: str) -> dict[str, Any]:
        settings = self.settings
        records = train(
            self.module,
            model=self.parallel.wrap(self.module),
            loss=world_loss(settings),
            batches=self.windows.batch,
            optimisers=build_optimisers(self.module, settings.optimiser),
            run=self.run,
            settings=settings.loop,
            seed=settings.seed,
            parallel=self.parallel,
            evaluate=self._evaluate,
            fallback=fallback,
        )
        collapsed: str | None = None
        began, steps = time.perf_counter(), 0
        with track(title, settings.loop.steps) as progress:
            held: Mapping[str, float] = {}
            for record in records:
                steps += 1
                held = record.evaluation or held
                progress.update(
                    record.step,
                    loss=record.metrics.get("loss"),
                    held_out=held.get("validation_loss"),
                    rank=held.get("effective_rank"),
                )
                if record.evaluation is not None:
                    collapsed = collapse_reason(self._evaluations(record), settings.alarm)
                    if collapsed and settings.alarm.action == "stop":
                        raise TrainingError(self._stop(collapsed, record.step, record.evaluation))
        seconds = time.perf_counter() - began
        return self._conclude(recipe, collapsed, steps * settings.batch_size * settings.model.num_frames / seconds)

    def _stop(self, reason: str, step: int, evaluation: Mapping[str, float]) -> str:
        message = _stopped(reason, self.settings, self.run)
        if self.parallel.is_main:
            facts = {"regulariser": self.settings.regulariser.name, "lambda": self.settings.resolved_weight}
            result = {"kind": COLLAPSE, "collapsed": reason, "message": message, "step": step, **facts, **evaluation}
            self.run.write_result(result)
        return message

    def _evaluations(self, record: Any) -> list[Mapping[str, Any]]:
        # Other ranks keep no records; so that all decide alike, the newest evaluation then decides alone.
        if self.parallel.world_size > 1:
            return [{"step": record.step, **record.evaluation}] * self.settings.alarm.patience
        return list(self.run.metrics("evaluation"))

    # Every rank looks at the same windows; summed over ranks, SIGReg's N would count each of them twice.
    @alone()
    def _evaluate(self, _model: nn.Module) -> Mapping[str, float]:
        module, check = self.module, self.calibration[:2]
        batch_mode: list[Tensor] = []

        def passes(part: nn.Module) -> Iterator[object]:
            for batch in self.calibration:
                z_BTD, predicted = part(batch.frames_BTHWC, batch.blocks_BTA)
                batch_mode.append(prediction_loss(z_BTD, predicted))
                yield None

        lagging = prediction_loss(*predict_windows(module, check))
        recalibrate(module, passes)
        settled = prediction_loss(*predict_windows(module, check))
        reference = torch.stack(batch_mode[: len(check)]).mean().clamp_min(1e-12)
        return latent_figures(*predict_windows(module, self.held_out)) | {
            "eval_over_train_before": float(lagging / reference),
            "eval_over_train": float(settled / reference),
        }

    def _conclude(self, recipe: str, collapsed: str | None, speed: float) -> dict[str, Any]:
        settings = self.settings
        if self.run.checkpoints.steps()[-1] != settings.loop.steps or settings.loop.final == "best":
            # The weights that the run ends with may be older than the last recalibration.
            self.module.eval()
            self._evaluate(self.module)
        self.module.eval()
        with alone():
            figures = latent_figures(*predict_windows(self.module, self.held_out))
        result: dict[str, Any] = {
            "kind": "world.fit",
            "recipe": recipe,
            "seed": settings.seed,
            "steps": self.run.checkpoints.steps()[-1],
            "frames_seen": self.run.checkpoints.steps()[-1] * settings.batch_size * settings.model.num_frames,
            "frames_per_second": speed if speed > 0 else None,
            "parameters": self.module.num_parameters(),
            "regulariser": settings.regulariser.name,
            "lambda": settings.resolved_weight,
            "collapsed": collapsed,
            "data": {**self.counts, "nan_action_rows": self.statistics.num_nan_rows},
            "model": "model",
            **figures,
        }
        weights = gather(module_tensors(self.module), self.parallel)
        if self.parallel.is_main:
            plain = WorldModel(settings.model)
            restore_module(weights, plain, Parallel(torch.device("cpu")), source="the trained module")
            facts = {name: result[name] for name in ("recipe", "seed", "steps", "validation_loss", "collapsed")}
            # By these, `forethought world evaluate` finds the episodes that training never saw.
            facts |= {"held_out": settings.held_out, "episodes": self.identity}
            save_world_model(plain, self.run.directory / "model", facts=facts, replace=True)
            self.run.write_result(result)
        self.parallel.barrier()
        return result


def _check_inputs(run: Run, episodes: Episodes) -> None:
    path, identity = run.directory / INPUTS, episodes.identity()
    if not path.exists():
        files.write_json(path, {"episodes": identity})
    elif files.read_json(path, what="run inputs").get("episodes") != identity:
        raise ConfigError(
            f"{run.directory} was trained on other episodes than {episodes.source}; give those, or start anew with "
            "--exists replace"
        )


def _stopped(reason: str, settings: WorldFitConfig, run: Run) -> str:
    return (
        f"the representation collapsed: {reason}. The regulariser is {settings.regulariser.name} with "
        f"lambda {settings.resolved_weight:.3g} (strength {settings.regulariser.strength:g} over batch "
        f"{settings.batch_size}); raise regulariser.strength (11.5 is usual), or set alarm.action record to go on. "
        f"What was learned until then is in {run.directory}"
    )
