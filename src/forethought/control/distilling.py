"""Distilling the planner into a reactive policy: plan in the situations of the data, regress the first actions, export.

Legend: B situations a plan, N steps, O observation, A action.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forethought.control.agent import Agent
from forethought.control.models import ClonedPolicy, ControlModel, situation_of
from forethought.control.models.stepwise import PLANNED
from forethought.control.training import Data, PartConfig, fit_part
from forethought.core import files
from forethought.core.errors import ConfigError, InputError
from forethought.core.extras import require
from forethought.core.progress import track
from forethought.core.rng import torch_generator
from forethought.core.run import Exists
from forethought.data.episodes import Episodes, WindowConfig, WindowCutter, split_by_episode
from forethought.plan import Problem

_BATCH = 64
ONNX_INPUTS = ("observation", "history_observations", "history_actions", "history_mask")


def label(agent: Agent, episodes: Episodes, *, seed: int = 0) -> Episodes:
    """Return the episodes with what the agent's planner would do at each step, as the array `planned_actions`.

    Raises:
        ObjectiveError: the agent's objective raises.
        InputError: the planner finds no usable action in most situations.
    """
    history = agent.situation().history
    cutter = WindowCutter(episodes, WindowConfig(history=history, horizon=1))
    planned = np.array(episodes.actions, np.float32)
    unusable = 0
    with track("label", episodes.num_steps) as bar:
        for first in range(0, len(cutter.anchors), _BATCH):
            rows = cutter.anchors[first : first + _BATCH]
            plan = agent.planner(
                _problem(agent, situation_of(cutter.cut(rows))),
                torch_generator(seed, "control.label", first),
            )
            usable = (plan.cost_B.isfinite() & plan.actions_BHA.isfinite().flatten(1).all(1)).numpy()
            # Where there is no plan the logged action stays.
            planned[rows[usable]] = plan.actions_BHA[:, 0].numpy()[usable]
            unusable += int((~usable).sum())
            bar.update(min(first + _BATCH, episodes.num_steps))
    if unusable * 2 > episodes.num_steps:
        raise InputError(f"no usable plan in {unusable} of {episodes.num_steps} situations; look at the objective")
    arrays: dict[str, NDArray[Any]] = {**episodes.arrays, PLANNED: planned}
    return Episodes(
        arrays,
        starts=episodes.starts,
        lengths=episodes.lengths,
        terminated=episodes.terminated,
        truncated=episodes.truncated,
        finals=episodes.finals,
        env_id=episodes.env_id,
        source=f"{episodes.source}, planned",
    )


def distil(
    agent: Agent,
    episodes: Episodes,
    out: Path | str,
    settings: PartConfig,
    *,
    num_states: int = 20_000,
    seed: int = 0,
    exists: Exists = "refuse",
) -> ClonedPolicy:
    """Train a reactive policy on what the agent plans in about `num_states` situations of the data, and return it.

    Raises:
        InputError: the data, the settings or the directory cannot be used.
        InterruptedRunError: interrupted and saved.
    """
    enough = int(np.searchsorted(np.cumsum(episodes.lengths), num_states)) + 1
    chosen = episodes.select(np.arange(min(max(2, enough), episodes.num_episodes)))
    parts = split_by_episode(label(agent, chosen, seed=seed), seed=seed, fractions={"train": 0.9, "validation": 0.1})
    model: ControlModel = fit_part(
        "policy.cloning",
        settings,
        Data(parts["train"], parts["validation"]),
        agent.body,
        out,
        seed=seed,
        exists=exists,
        recipe="control.distil",
        facts={"distilled_from": agent.fingerprints(), "states": chosen.num_steps},
    )
    if not isinstance(model, ClonedPolicy):
        raise ConfigError(f"{out} holds a {model.part} model; give another directory")
    return model


def export_onnx(policy: ClonedPolicy, path: Path | str) -> float:
    """Write a policy as ONNX, real units in and out, and return the largest difference to it under onnxruntime.

    Inputs: observation (B, O); with a history also history_observations, history_actions, history_mask.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        StorageError: the disk refused.
    """
    for module in ("onnx", "onnxscript"):
        require(module, extra="onnx", purpose="exporting a policy")
    runtime: Any = require("onnxruntime", extra="onnx", purpose="checking an exported policy")
    body, history = policy.body, policy.settings.history
    generator = torch_generator(0, "control.onnx")
    example = [
        body.observation.shift + body.observation.scale * torch.randn(3, body.obs_dim, generator=generator).numpy()
    ]
    inputs = [torch.from_numpy(np.asarray(example[0], np.float32))]
    if history:
        past = inputs[0][:, None].repeat(1, history, 1)
        inputs += [past, torch.zeros(3, history, body.act_dim), torch.ones(3, history)]
    names = list(ONNX_INPUTS[: len(inputs)])
    whole = _Whole(policy).eval()
    with warnings.catch_warnings():
        # The exporter's own use of what torch has deprecated.
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            whole,
            tuple(inputs),
            input_names=names,
            output_names=["action"],
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in inputs),
            dynamo=True,
            verbose=False,
        )
    data = io.BytesIO()
    program.save(data)
    files.replace_file(path, data.getvalue())
    session = runtime.InferenceSession(data.getvalue(), providers=["CPUExecutionProvider"])
    given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    with torch.no_grad():
        wanted = whole(*inputs).numpy()
    return float(np.abs(session.run(["action"], given)[0] - wanted).max())


class _Whole(nn.Module):
    """A policy with its units, as a function of tensors alone."""

    def __init__(self, policy: ClonedPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor, *history: Tensor) -> Tensor:
        return self.policy.actions(observation, *history)


def _problem(agent: Agent, start: Any) -> Problem:
    low, high = agent.body.bounds()
    return Problem(
        dynamics=agent.dynamics,
        objective=agent.judge,
        start=start,
        horizon=agent.horizon,
        action_dim=agent.body.act_dim,
        num_environments=len(start.obs_BO),
        low=low,
        high=high,
    )
