"""The arms of the control benchmark: planners of several backbones, samplers and steps on a body of Walker2d's size."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from forethought.control import Body, SSRConfig, SSRPlanner, preset
from forethought.control.models import MODELS, ActionProposal, DiffusionDynamics, JointDiffuser, JointHalves
from forethought.control.objectives import Objective
from forethought.control.objectives.judge import Judge
from forethought.control.situation import Situation
from forethought.core.rng import torch_generator
from forethought.data.episodes import identity_normaliser
from forethought.diffusion import SamplerConfig
from forethought.plan import Problem

OBSERVATION, ACTION, SAMPLES = 17, 6, 64
PlanOnce = Callable[[int], None]


@dataclass(frozen=True)
class Arm:
    """One way of planning: backbone, horizon, sampler and steps of proposal and dynamics, or one joint model."""

    name: str
    preset: str = "cpu"
    horizon: int = 16
    steps: tuple[int, int] = (2, 2)
    sampler: str = "ddpm"
    joint: bool = False
    precision: str = "float32"
    folded: bool = True
    """Whether networks are folded and packed for planning; otherwise they run as they are trained."""


# CleanDiffuser and Diffuser plan with one joint model in 20 ancestral steps; the paper of D-MPC samples 32 + 10.
ARMS = {
    "cpu": Arm("cpu"),
    "joint": Arm("joint", steps=(20, 0), joint=True),
    "paper_sampler": Arm("paper_sampler", steps=(32, 10)),
    "bfloat16": Arm("bfloat16", precision="bfloat16"),
    "unfolded": Arm("unfolded", folded=False),
}
TABLE = tuple(
    Arm(f"{preset} F{horizon} {sampler} {first}+{second}", preset, horizon, (first, second), sampler)
    for preset, horizon in (("tiny", 8), ("cpu", 16), ("cpu", 32), ("patched", 16), ("patched", 32))
    for first, second in ((1, 1), (2, 2), (4, 4), (8, 8))
    for sampler in ("ddpm", "ddim", "dpm2m")
)


def body() -> Body:
    """Return a body of Walker2d's size in plain units."""
    bound = np.ones(ACTION, np.float32)
    return Body(None, -bound, bound, identity_normaliser((OBSERVATION,)), identity_normaliser((ACTION,)))


def planner_of(arm: Arm, device: str = "cpu") -> PlanOnce:
    """Return a function that makes plan number i."""
    shape, made = body(), preset(arm.preset)
    sampled = SamplerConfig(name=arm.sampler, steps=arm.steps[0], clip=8.0)  # pyright: ignore
    noisy = replace(made.proposal.model, horizon=arm.horizon, sampler=sampled)
    # The value that the preset trains: of states, or of whole windows.
    part = next(name for name in made.parts if name.startswith("value."))
    judge = MODELS[part](shape, replace(made.of(part).model, horizon=arm.horizon))
    value = _ready(judge, replace(arm, precision="float32"), device)
    if arm.joint:
        halves = JointHalves(_ready(JointDiffuser(shape, noisy), arm, device))
        propose, predict = halves.propose, halves.predict
    else:
        sampler = SamplerConfig(name="ddim", steps=max(1, arm.steps[1]), clip=8.0)
        plain = replace(made.dynamics.model, horizon=arm.horizon, sampler=sampler)
        propose = _ready(ActionProposal(shape, noisy), arm, device)
        predict = _ready(DiffusionDynamics(shape, plain), arm, device)
    planner = SSRPlanner(propose, SSRConfig(num_samples=SAMPLES, warm_start=False))
    low, high = (bound.to(device) for bound in shape.bounds())
    start = Situation.first(torch.zeros(1, OBSERVATION), ACTION, 0).to(device)
    problem = Problem(
        dynamics=predict,
        objective=Judge(Objective.learned(value)),
        start=start,
        horizon=arm.horizon,
        action_dim=ACTION,
        low=low,
        high=high,
    )
    return lambda index: planner(problem, torch_generator(0, "bench", index, device=device)) and None


def _ready(model: Any, arm: Arm, device: str) -> Any:
    model.place(device).eval()
    if not arm.folded:
        model.inference = lambda network=None: model.network if network is None else network
    return model.with_precision(getattr(torch, arm.precision))


def time_arms(arms: Mapping[str, PlanOnce], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each plan of each arm; arms take turns, the first two rounds warm up."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for index in range(rounds + 2):
        for name, plan in arms.items():
            began = time.perf_counter()
            plan(index)
            if index >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds
