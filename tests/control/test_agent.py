"""The agent when things go wrong, its memory, chunks, several robots, and how it is saved."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import forethought
from forethought.control import Agent, AgentConfig, Body, Constraint, Objective, load_model, save_model
from forethought.core.errors import ConfigError, ForethoughtError, InputError
from tests.control.integrator import Integrator, towards

HERE = np.array([0.2, 0.1])


def _raises(before, action, after):
    raise ValueError("the sensor model is missing")


@pytest.mark.parametrize(
    ("observation", "objective", "said"),
    [
        (np.array([np.nan, 0.0]), None, "not finite"),
        (np.array([0.0, np.inf]), None, "not finite"),
        (np.zeros(3), None, "has the shape"),
        ("broken", None, "has the shape"),
        (HERE, _raises, "sensor model"),
        (HERE, lambda s, a, s2: np.zeros((2, 2)), "one number a step"),
        (HERE, lambda s, a, s2: s2[..., 0] * np.nan, "finite score"),
    ],
)
def test_a_fault_still_gives_a_safe_action(agent, observation, objective, said: str):
    if objective is not None:
        agent.set_objective(objective)
    action = agent.act(observation)
    assert action.shape == (1,) or action.shape == (1, 1)
    assert np.isfinite(action).all()
    assert (np.abs(action) <= 1).all()
    assert agent.decision.source == ("rest",)
    assert said in " ".join(agent.decision.faults)
    assert agent.num_faults == 1
    # A moment later all is well again, and so is the robot.
    agent.set_objective(towards(1.0))
    agent.act(HERE)
    assert agent.decision.source == ("plan",)
    assert agent.decision.faults == ()


def test_the_rest_of_the_plan_bridges_a_fault_for_a_while(agent):
    agent.act(HERE)
    plan = agent.decision.plan.actions_BHA[0, :, 0].numpy()
    agent.act(HERE)
    blind = [(float(agent.act(np.full(2, np.nan))[0]), agent.decision.source[0]) for _ in range(6)]
    assert [source for _, source in blind] == ["coast"] * 4 + ["rest"] * 2
    assert np.allclose([action for action, _ in blind[:4]], plan[2:6], atol=1e-6)
    assert blind[-1][0] == 0.0


def test_faults_can_be_raised_instead(models):
    agent = Agent(
        models["proposal.diffusion"],
        models["dynamics.diffusion"],
        objective=Objective(_raises),
        settings=AgentConfig(on_fault="raise"),
    )
    with pytest.raises(InputError, match="sensor model"):
        agent.act(HERE)
    with pytest.raises(InputError, match="not finite"):
        agent.act(np.array([np.nan, 0.0]))


def test_all_candidates_rejected_gives_the_least_bad_and_says_so(agent):
    agent.set_constraints([Constraint.hard(lambda s, a, s2: s2[..., 0] > 100)])
    action = agent.act(HERE)
    assert np.isfinite(action).all()
    assert agent.decision.all_rejected
    assert agent.decision.source == ("plan",)


def test_a_constraint_keeps_the_agent_away(agent):
    from tests.control.integrator import move

    agent.set_objective(towards(1.5))
    agent.set_constraints([Constraint.hard(lambda s, a, s2: s2[..., 0] < 0.5)])
    state, highest = np.array([-1.0, 0.0]), -9.0
    for _ in range(40):
        state = move(state, float(agent.act(state)[0]))
        highest = max(highest, state[0])
    assert 0.2 < highest < 0.6


def test_the_same_seed_acts_alike_and_a_chunk_is_executed_whole(models):
    runs = []
    for _ in range(2):
        agent = Agent(
            models["proposal.diffusion"],
            models["dynamics.diffusion"],
            models["value.regression"],
            settings=AgentConfig(execute=3),
        )
        runs.append([agent.act(HERE) for _ in range(5)])
        assert agent.num_plans == 2
    assert np.array_equal(runs[0], runs[1])


def test_several_robots_are_driven_at_once(models):
    agent = Agent(models["proposal.diffusion"], models["dynamics.diffusion"], objective=towards(1.0), num_robots=3)
    actions = agent.act(np.stack([HERE, [2.0, 0.0], [np.nan, 0.0]]))
    assert actions.shape == (3, 1)
    assert agent.decision.source == ("plan", "plan", "rest")
    agent.reset(1)
    assert agent.situation().time_B.tolist()[1] in (0, 1)


def test_saved_and_opened_it_acts_bit_for_bit_alike(agent, tmp_path):
    agent.save(tmp_path / "agent")
    again = forethought.load(tmp_path / "agent")
    assert again.fingerprints() == agent.fingerprints()
    assert again.settings == agent.settings
    again.set_objective(towards(1.0))
    agent.reset()
    assert np.array_equal([again.act(HERE) for _ in range(4)], [agent.act(HERE) for _ in range(4)])


def test_a_model_is_opened_by_kind_and_a_damaged_one_is_not(models, tmp_path):
    place = save_model(models["dynamics.diffusion"], tmp_path / "model")
    opened = forethought.load(place)
    assert opened.fingerprint() == models["dynamics.diffusion"].fingerprint()
    assert json.loads((place / "model.json").read_text())["model"] == "dynamics.diffusion"
    weights = place / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-3] ^= 1
    weights.write_bytes(bytes(raw))
    with pytest.raises(ForethoughtError, match=r"model\.safetensors"):
        load_model(place)


def test_parts_of_another_body_are_refused(models, data):
    proposal, dynamics = models["proposal.diffusion"], models["dynamics.diffusion"]
    other = Body.from_dict({**proposal.body.to_dict(), "low": [-2.0]})
    stranger = type(dynamics)(other, dynamics.settings)
    with pytest.raises(ConfigError, match="another body"):
        Agent(proposal, stranger, objective=towards(1.0))
    agent = Agent(proposal, dynamics, objective=towards(1.0))
    with pytest.raises(ConfigError, match="another body"):
        agent.swap_dynamics(stranger)
    shorter = type(dynamics)(dynamics.body, replace(dynamics.settings, horizon=4))
    with pytest.raises(ConfigError, match="horizon"):
        agent.swap_dynamics(shorter)
    with pytest.raises(ConfigError, match="neither an objective"):
        Agent(proposal, dynamics)
    with pytest.raises(ConfigError, match="execute"):
        Agent(proposal, dynamics, objective=towards(1.0), settings=AgentConfig(execute=99))


def test_spaces_that_do_not_match_are_named(agent):
    env = Integrator()
    agent.check_spaces(env.observation_space, env.action_space)
    import gymnasium

    with pytest.raises(ConfigError, match=r"\(5,\)"):
        agent.check_spaces(gymnasium.spaces.Box(-1, 1, (5,)), env.action_space)
    with pytest.raises(ConfigError, match="takes actions from"):
        agent.check_spaces(env.observation_space, gymnasium.spaces.Box(-0.5, 0.5, (1,)))


def test_no_public_call_touches_the_global_generator(agent):
    before = torch.random.get_rng_state()
    agent.act(HERE)
    assert torch.equal(torch.random.get_rng_state(), before)
