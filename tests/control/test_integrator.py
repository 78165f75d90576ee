"""The whole of D-MPC against exact answers: dynamics, goal swap, defect and recovery, and the joint baseline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forethought.control import AdaptConfig, Monitor, adapt
from forethought.control.models import situation_of
from forethought.control.training import rollout_error
from forethought.control.training.error import held_out
from forethought.core.rng import torch_generator
from forethought.data.episodes import WindowConfig
from tests.control.integrator import episodes, joint_agent, move, rollout, score, towards


def _play(seed: int = 9):
    """Reward-free play of a body whose sign flipped: small trembling actions, nothing like the first data."""
    return episodes(20, seed=seed, gain=-1.0, reach=0.3, hold=1)


def test_dynamics_match_the_closed_form(models, data):
    dynamics = models["dynamics.diffusion"]
    batch = held_out(data.validation, WindowConfig(horizon=8, anchors="whole"), num=64)
    start = situation_of(batch)
    actions = torch.rand(64, 8, 8, 1, generator=torch_generator(0, "test")) * 2 - 1
    error = (dynamics(start, actions) - rollout(start.obs_BO, actions)) / dynamics.observation.scale
    assert error.square().mean((0, 1, 3)).sqrt().max() < 0.1
    measured = rollout_error(dynamics, data.validation)
    assert measured.model_F.max() < 0.05 < measured.persistence_F.min()


def test_dynamics_answer_each_candidate_from_its_own_actions(models, data):
    dynamics = models["dynamics.diffusion"]
    start = situation_of(held_out(data.validation, WindowConfig(horizon=8), num=3))
    actions = torch.rand(3, 5, 8, 1, generator=torch_generator(1, "test")) * 2 - 1
    whole = dynamics(start, actions)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(dynamics(start, actions[:, order]), whole[:, order], atol=1e-6)


def test_one_step_dynamics_match_the_closed_form(models, data):
    assert rollout_error(models["dynamics.one-step"], data.validation).model_F.max() < 0.05


def test_a_new_goal_turns_the_agent_round_and_no_parameter_changes(agent):
    before = agent.fingerprints()
    state, path = np.array([0.0, 0.0]), []
    for step in range(100):
        if step == 50:
            agent.set_objective(towards(-1.0))
        state = move(state, float(agent.act(state)[0]))
        path.append(state[0])
    assert abs(path[49] - 1.0) < 0.15
    assert abs(path[-1] + 1.0) < 0.15
    assert np.diff(path[50:56]).min() < 0  # it is under way within six steps
    assert agent.fingerprints() == before
    assert set(before) == {"proposal", "dynamics", "value"}


def test_the_new_objective_counts_at_the_very_next_action(agent):
    agent.act(np.array([0.0, 0.0]))
    agent.set_objective(towards(-3.0))
    assert agent.act(np.array([0.0, 0.0]))[0] < 0
    assert agent.decision.source == ("plan",)  # not the rest of the old chunk


def test_defect_and_recovery_and_the_joint_baseline(agent, models, train_part, data, tmp_path):
    whole = score(agent)
    broken = score(agent, gain=-1.0)
    assert whole > 0.5
    assert broken < 0.1 * whole
    before = agent.fingerprints()
    settings = AdaptConfig(steps=600, lr=1e-3, batch_size=128)
    report = adapt(models["dynamics.diffusion"], _play(), tmp_path / "new", original=data.validation, settings=settings)
    assert agent.fingerprints() == before  # a copy learned, not the agent's own
    agent.swap_dynamics(report.dynamics)
    assert score(agent, gain=-1.0) >= 0.8 * whole
    after = agent.fingerprints()
    assert [name for name in before if before[name] != after[name]] == ["dynamics"]
    assert report.new_after.model_F.max() < 0.1 * report.new_before.model_F.max()
    assert report.old_after.model_F[-1] > 5 * report.old_before.model_F[-1]  # the old body is forgotten, and it says so

    joint = train_part("joint.diffusion")
    joint_whole = score(joint_agent(joint))
    adapted = adapt(joint, _play(), tmp_path / "joint", settings=settings)
    assert joint_whole > 0.3
    assert score(joint_agent(adapted.dynamics), gain=-1.0) < 0.8 * joint_whole


def test_mixing_the_old_data_in_keeps_the_play_in_the_lead(models, data, tmp_path):
    settings = AdaptConfig(steps=60, lr=1e-3, batch_size=64, mix_original=0.5)
    with pytest.raises(ValueError, match="needs the original"):
        adapt(models["dynamics.diffusion"], _play(), tmp_path / "none", settings=settings)
    report = adapt(models["dynamics.diffusion"], _play(), tmp_path / "mixed", original=data.train, settings=settings)
    assert report.new_after.model_F[0] < report.new_before.model_F[0]


def test_the_monitor_wishes_to_adapt_on_the_changed_body_and_not_on_the_old(agent, models, data):
    agent.set_objective(towards(1.0))
    signs = {}
    for gain in (1.0, -1.0):
        monitor = Monitor.calibrate(models["dynamics.diffusion"], data.validation, execute=2)
        agent.reset()
        state = np.array([0.5, 0.0])
        for _ in range(40):
            state = np.clip(move(state, float(agent.act(state)[0]), gain), -3, 3)
            signs[gain] = monitor.update(float(agent.decision.residual_B[0]))
        again = Monitor.from_dict(monitor.to_dict())
        assert again.cusum.value == monitor.cusum.value
    assert not signs[1.0].wants_to_adapt
    assert signs[-1.0].wants_to_adapt
    assert signs[-1.0].p < 0.05
