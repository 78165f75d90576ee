"""The networks that planning runs: equal to those that were trained, never stale, and narrow only where asked."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch

from forethought.control import Agent, AgentConfig, body_of, preset
from forethought.control.models import MODELS
from forethought.control.situation import Situation
from forethought.core.rng import torch_generator
from forethought.plan import Candidates
from tests.control.integrator import score, towards

HERE = torch.tensor([[0.2, 0.1]])


def _plan(models, *, plain: bool = False, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    parts = [models[name].with_precision(dtype) for name in ("proposal.diffusion", "dynamics.diffusion")]
    value = models["value.regression"].with_precision(dtype)
    if plain:
        parts, value = [copy.copy(part) for part in parts], copy.copy(value)
        for part in (*parts, value):
            object.__setattr__(part, "inference", lambda network=None, part=part: network or part.network)
    start = Situation.first(HERE, 1, 0)
    actions = parts[0](start, 64, torch_generator(0, "test"))
    states = parts[1](start, actions)
    return actions, states, value(Candidates(start, actions, states))


def test_the_folded_networks_are_equal_up_to_rounding(models):
    for fast, slow in zip(_plan(models), _plan(models, plain=True), strict=True):
        assert (fast - slow).abs().max() < 1e-5 * slow.abs().max()


def test_narrow_networks_err_within_bounds_and_only_when_asked(models):
    wide, narrow = _plan(models), _plan(models, dtype=torch.bfloat16)
    value = models["value.regression"]
    units = (value.action.scale, value.observation.scale, value.units_2[1])
    for exact, rough, unit in zip(wide, narrow, units, strict=True):
        error = (rough - exact).abs() / unit
        assert 0 < error.max() < 0.1
        assert error.square().mean().sqrt() < 0.02
    for again, exact in zip(_plan(models), wide, strict=True):
        assert torch.equal(again, exact)


def test_a_narrow_agent_drives_as_well_and_its_parameters_are_the_same(models):
    parts = (models["proposal.diffusion"], models["dynamics.diffusion"], models["value.regression"])
    totals = {}
    for precision in ("float32", "bfloat16"):
        agent = Agent(*parts, objective=towards(1.0), settings=AgentConfig(execute=2, precision=precision))
        assert agent.fingerprints()["dynamics"] == parts[1].fingerprint()
        totals[precision] = score(agent, num=1)
    # One perfect bang-bang run scores about 0.8; what bfloat16 rounds away is far below what starts differ by.
    assert totals["float32"] > 0.5
    assert abs(totals["bfloat16"] - totals["float32"]) < 0.05


def test_a_weight_that_changes_counts_from_the_very_next_plan(models):
    dynamics = copy.deepcopy(models["dynamics.diffusion"])
    start = Situation.first(HERE, 1, 0)
    actions = torch.zeros(1, 1, dynamics.horizon, 1)
    before = dynamics(start, actions)
    fewer = dynamics.with_steps(1)
    with torch.no_grad():
        next(iter(dynamics.network.parameters())).add_(0.3)
    after = dynamics(start, actions)
    assert not torch.allclose(before, after, atol=1e-4)
    object.__setattr__(dynamics, "inference", lambda network=None: dynamics.network)
    assert torch.allclose(dynamics(start, actions), after, atol=1e-5)
    # A shallow copy shares the weights, a deep one keeps its own.
    assert fewer.inference() is fewer.inference()
    assert torch.allclose(models["dynamics.diffusion"](start, actions), before)


def test_batches_and_single_robots_are_planned_for_alike(models):
    dynamics = models["dynamics.diffusion"]
    starts = np.array([[0.2, 0.1], [-0.5, 0.4], [1.0, -0.2]], np.float32)
    together = dynamics(Situation.first(torch.from_numpy(starts), 1, 0), torch.full((3, 5, dynamics.horizon, 1), 0.3))
    for robot in range(3):
        alone = Situation.first(torch.from_numpy(starts[robot : robot + 1]), 1, 0)
        states = dynamics(alone, torch.full((1, 5, dynamics.horizon, 1), 0.3))
        assert torch.allclose(states[0], together[robot], atol=1e-5)


def test_the_preset_value_of_states_is_folded_too(data):
    value = MODELS["value.state"](body_of(data.train), replace(preset("cpu").value.model, horizon=8))
    start, actions = Situation.first(HERE, 1, 0), torch.full((1, 5, 8, 1), 0.3)
    candidates = Candidates(start, actions, torch.randn(1, 5, 8, 2, generator=torch_generator(0, "states")))
    fast = value(candidates)
    object.__setattr__(value, "inference", lambda network: network)
    assert torch.allclose(value(candidates), fast, atol=1e-5)
    assert fast.std() > 0


def test_settings_say_the_precision():
    assert AgentConfig().precision == "float32"
    assert replace(AgentConfig(), precision="bfloat16").precision == "bfloat16"
