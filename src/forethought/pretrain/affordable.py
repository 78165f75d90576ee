"""What one fit can do in a budget of time: its steps are measured on its own model, planned once and kept."""

from __future__ import annotations

import copy
import math
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from forethought.core import files
from forethought.core.errors import ConfigError
from forethought.data import Batch, Corpus
from forethought.pretrain.config import FitConfig
from forethought.train import build_optimisers

PLAN = "plan.json"
FORWARD_SHARE = 1.0 / 3.0  # a step's backward pass is two forward ones
SAVED_BYTES = 12  # of a parameter: fp32 weights and two moments
BYTES_A_SECOND = 100e6  # written, flushed and hashed, on a plain disk
SAVE_SECONDS = 0.1
MOST_RESERVED, RESERVED_SHARE = 15.0, 0.05
_COUNTING_SECONDS = 1e-6  # a token, for counting the n-grams of the baselines: 0.6 us were measured
_MEASURED_STEPS, _MEASURED_SECONDS = 12, 2.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(text: str) -> float:
    """Return the seconds of a budget such as 90s, 30m, 2h or 1d.

    Raises:
        ConfigError: the text is no such budget.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"budget {text!r} is no time; give a number and a unit such as 90s, 30m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True)
class StepPlan:
    """The steps that a budget affords, out of those that were asked for, and what was measured to say so."""

    seconds: float
    asked: int
    steps: int
    step_seconds: float
    epochs: float

    def __str__(self) -> str:
        """Return the plan in words, what is left out included."""
        left = f"left out: {self.asked - self.steps:,} steps" if self.steps < self.asked else "nothing is left out"
        return (
            f"a budget of {self.seconds:,.0f} s affords {self.steps:,} of {self.asked:,} steps ({self.epochs:.2f} "
            f"passes over the text; a step takes {self.step_seconds:.3g} s): {left}"
        )


def kept_plan(directory: Path, seconds: float | None) -> StepPlan | None:
    """Return the plan that a run was begun with, if any.

    Raises:
        ConfigError: the run was begun with another budget: its schedule is made for the steps that were planned.
    """
    path = directory / PLAN
    if not path.is_file():
        return None
    values = files.read_json(path, what="plan of a budget")
    plan = StepPlan(**{name: values[name] for name in ("seconds", "asked", "steps", "step_seconds", "epochs")})
    if seconds is not None and seconds != plan.seconds:
        raise ConfigError(
            f"{directory} was begun with a budget of {plan.seconds:,.0f} s and {plan.steps:,} steps, and the rate "
            f"falls to its end there; a budget of {seconds:,.0f} s needs a directory of its own"
        )
    return plan


def plan_steps(settings: FitConfig, seconds: float, remaining: float, step_seconds: float, **sizes: float) -> StepPlan:
    """Plan the steps that fit into the `remaining` seconds of a budget, evaluations, saves and the end included.

    `sizes` are num_parameters, num_held_out (tokens that are measured at the end), num_counted (tokens of which the
    baselines count n-grams) and steps_per_epoch.

    Raises:
        ConfigError: not even one step fits.
    """
    loop, tokens = settings.loop, settings.batch_size * settings.context
    forward = FORWARD_SHARE * step_seconds / tokens
    save = SAVE_SECONDS + sizes["num_parameters"] * SAVED_BYTES / BYTES_A_SECOND
    last = forward * sizes["num_held_out"] + 2 * save + _COUNTING_SECONDS * sizes["num_counted"]
    reserve = min(MOST_RESERVED, RESERVED_SHARE * seconds)
    each = step_seconds * loop.accumulate
    each += forward * settings.evaluation_tokens / loop.evaluate_every if loop.evaluate_every else 0.0
    each += save / loop.checkpoint_every if loop.checkpoint_every else 0.0
    affordable = math.floor((remaining - last - reserve) / each)
    if affordable < 1:
        raise ConfigError(
            f"a budget of {seconds:,.0f} s affords no step: {seconds - remaining:.0f} s have passed, the end takes "
            f"about {last + reserve:.0f} s and a step {step_seconds:.3g} s; give a longer --budget, a smaller model or "
            "less text"
        )
    steps = min(affordable, loop.steps)
    return StepPlan(seconds, loop.steps, steps, step_seconds, steps / sizes["steps_per_epoch"])


def keep_plan(directory: Path, plan: StepPlan) -> None:
    """Write the plan into the run directory, for every later resumption."""
    files.write_json(directory / PLAN, asdict(plan))


def planned(settings: FitConfig, plan: StepPlan) -> FitConfig:
    """Return the config with as many steps as planned: the schedule of the rate ends with the last of them."""
    return replace(settings, loop=replace(settings.loop, steps=plan.steps))


def step_seconds(
    module: nn.Module,
    loss: Callable[[nn.Module, Batch], Any],
    batches: Callable[[int], Batch],
    settings: FitConfig,
) -> float:
    """Return the median seconds of a training step on a copy of the model, so that the model itself is untouched."""
    trial = copy.deepcopy(module).train()
    optimisers = build_optimisers(trial, settings.optimiser, steps_per_epoch=1.0)
    taken: list[float] = []
    began = time.monotonic()
    for number in range(_MEASURED_STEPS + 1):
        started = time.perf_counter()
        loss(trial, batches(number))[0].backward()
        optimisers.step()
        optimisers.zero_grad()
        if next(trial.parameters()).device.type != "cpu":
            torch.accelerator.synchronize(next(trial.parameters()).device)
        if number:  # the first warms up
            taken.append(time.perf_counter() - started)
        if len(taken) >= 3 and time.monotonic() - began > _MEASURED_SECONDS:
            break
    return statistics.median(taken)


def held_out_tokens(corpus: Corpus, final_tokens: int) -> int:
    """Return how many tokens the end of a fit measures: of validation and test, at most so many each; 0: all."""
    return sum(min(each.num_tokens, final_tokens or each.num_tokens) for each in (corpus.validation, corpus.test))
