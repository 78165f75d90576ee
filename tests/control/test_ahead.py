"""Planning ahead: a state that was foreseen finds its plan, no other does, and what was prepared never outlives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forethought.control import Agent, AgentConfig
from forethought.control.ahead import AheadAgent, Tube, chunk_residuals
from forethought.core.errors import ArtefactError, ConfigError, DataError
from tests.control.integrator import episodes, move, towards

CHUNK = 4


@pytest.fixture(scope="module")
def tube(models) -> Tube:
    dynamics = models["dynamics.diffusion"]
    residuals = chunk_residuals(dynamics, episodes(40, seed=5), execute=CHUNK)
    return Tube.calibrate(residuals, dynamics.body.observation.scale, num_centres=3)


def _agent(models, tube: Tube, **options: Any) -> AheadAgent:
    parts = (models["proposal.diffusion"], models["dynamics.diffusion"])
    settings = AgentConfig(execute=CHUNK)
    return AheadAgent(*parts, objective=towards(1.0), settings=settings, tube=tube, **options)


def _drive(agent: AheadAgent, *, steps: int = 24, push: float = 0.0, prepare: bool = True) -> list[float]:
    state, actions = np.array([-1.0, 0.0]), []
    for step in range(steps):
        if step == 2 * CHUNK:
            state = state + push
        action = float(agent.act(state)[0])
        actions.append(action)
        if prepare and agent.decision is not None and agent.decision.plan is not None:
            agent.prepare()
        state = move(state, action)
    return actions


def test_the_tube_covers_what_it_promises_and_more_centres_make_it_thinner(models):
    dynamics = models["dynamics.diffusion"]
    scale = dynamics.body.observation.scale
    known, fresh = (chunk_residuals(dynamics, episodes(60, seed=seed), execute=CHUNK) for seed in (5, 6))
    radii = []
    for num in (1, 4):
        tube = Tube.calibrate(known, scale, num_centres=num, coverage=0.8)
        inside = np.mean([tube.outcome(np.zeros(2, np.float32), row * scale) >= 0 for row in fresh])
        # 360 fresh chunk ends: three standard errors are 0.06.
        assert 0.72 < inside < 0.9
        radii.append(tube.radius)
    assert radii[1] < 0.9 * radii[0]


def test_each_foreseen_state_is_its_own_outcome_and_far_ones_are_none(tube: Tube):
    predicted = np.array([0.4, -0.2], np.float32)
    for number in range(tube.num_centres):
        assert tube.outcome(predicted, tube.foreseen(predicted, number)) == number
    assert tube.outcome(predicted, predicted + 50 * tube.scale_O) == -1


def test_what_was_foreseen_starts_at_once_and_a_push_replans(models, tube: Tube):
    agent = _agent(models, tube)
    _drive(agent)
    assert agent.statistics.hits >= 4
    assert agent.planner.budget.num_plans == 1 + agent.statistics.misses
    calm = agent.statistics.hits
    agent.reset()
    before = agent.planner.budget.num_plans
    _drive(agent, push=2.0)
    assert agent.statistics.hits - calm <= calm - 1
    assert agent.planner.budget.num_plans - before >= 2


def test_a_prepared_plan_is_the_plan_for_its_state(models, tube: Tube):
    agent = _agent(models, tube)
    agent.act(np.array([-1.0, 0.0]))
    assert agent.prepare() == tube.num_centres
    start, predicted = agent._end  # pyright: ignore
    held = agent.cache._live["robot"][1]
    for number, plan in held.items():
        assert plan.population.candidates.start.obs_BO[0].numpy() == pytest.approx(tube.foreseen(predicted, number))
        assert int(plan.population.candidates.start.time_B[0]) == CHUNK
    assert int(start.time_B[0]) == CHUNK
    for _ in range(CHUNK - 1):
        agent.act(np.array([-1.0, 0.0]))
    # It comes out as foreseen in the second of the likely ways.
    action = agent.act(tube.foreseen(predicted, 1))
    assert agent.decision is not None
    assert agent.decision.plan is held.get(1, agent.decision.plan)
    assert action[0] == pytest.approx(float(agent.decision.plan.actions_BHA[0, 0, 0]))
    assert agent.statistics.hits == 1


def test_nothing_prepared_outlives_its_objective_its_dynamics_or_its_episode(models, tube: Tube):
    agent = _agent(models, tube)
    for change in (
        lambda: agent.set_objective(towards(-1.0)),
        lambda: agent.swap_dynamics(models["dynamics.diffusion"]),
        agent.reset,
    ):
        agent.act(np.array([-1.0, 0.0]))
        agent.prepare()
        assert len(agent.cache) == tube.num_centres
        change()
        assert len(agent.cache) == 0
        assert agent.prepare() == 0


def test_without_preparing_it_is_the_plain_agent(models, tube: Tube):
    plain = Agent(
        models["proposal.diffusion"],
        models["dynamics.diffusion"],
        objective=towards(1.0),
        settings=AgentConfig(execute=CHUNK),
    )
    agent = _agent(models, tube)
    assert _drive(agent, prepare=False) == _drive(plain, prepare=False)  # pyright: ignore
    assert agent.statistics.hits == 0


def test_a_thread_prepares_by_itself(models, tube: Tube):
    agent = _agent(models, tube, background=True)
    state = np.array([-1.0, 0.0])
    for _ in range(5 * CHUNK):
        state = move(state, float(agent.act(state)[0]))
        if agent._pending is not None:
            agent._pending.result()  # the time that a chunk leaves is simulated by waiting
    agent.close()
    assert agent.statistics.hits >= 3


def test_bad_tubes_are_refused(models, tube: Tube):
    with pytest.raises(DataError, match="cannot calibrate"):
        Tube.calibrate(np.zeros((4, 2)), np.ones(2, np.float32), coverage=0.9)
    with pytest.raises(ConfigError, match="coverage"):
        Tube.calibrate(np.zeros((40, 2)), np.ones(2, np.float32), coverage=1.0)
    with pytest.raises(ConfigError, match="one robot"):
        _agent(models, tube, num_robots=2)
    other = Tube(np.zeros((1, 3)), 1.0, np.ones(3, np.float32))
    with pytest.raises(ConfigError, match="tube"):
        _agent(models, other)
    with pytest.raises(DataError, match="no chunk"):
        chunk_residuals(models["dynamics.diffusion"], episodes(3, seed=0, length=2), execute=CHUNK)


def test_no_plan_is_prepared_where_no_candidate_is_finite(models, tube: Tube):
    agent = _agent(models, tube)
    agent.act(np.array([-1.0, 0.0]))
    # The objective breaks in place, after the chunk began.
    agent._judge = type(agent.judge)(towards(float("nan")))
    assert agent.prepare() == 0
    assert torch.isfinite(torch.tensor(agent.act(np.array([-1.0, 0.0])))).all()


def test_a_prepared_plan_is_followed_up_from_where_the_robot_stands(models, tube: Tube):
    agent = _agent(models, tube)
    agent.act(np.array([-1.0, 0.0]))
    agent.prepare()
    end = agent._end
    assert end is not None
    for _ in range(CHUNK - 1):
        agent.act(np.array([-1.0, 0.0]))
    # Inside the tube, yet not where the plan was made for.
    seen = tube.foreseen(end[1], 0) + np.float32(0.9 * tube.radius) * tube.scale_O
    agent.act(seen)
    assert agent.statistics.hits == 1
    assert agent.decision is not None
    plan = agent.decision.plan
    assert plan is not None
    states = agent.dynamics(agent._history.situation([0]), plan.actions_BHA[:, None])[0, 0, :CHUNK]
    assert agent._end is not None
    assert agent._end[1] == pytest.approx(states[-1].numpy(), abs=1e-5)
    assert np.stack(agent._expected[0]) == pytest.approx(states.numpy(), abs=1e-5)


def test_it_opens_from_an_agents_directory_with_a_tube_or_says_why_not(models, tube: Tube, tmp_path: Path):
    own = _agent(models, tube)
    own.save(tmp_path / "own")
    opened = AheadAgent.load(tmp_path / "own", objective=towards(1.0))
    assert _drive(opened) == _drive(own)
    assert opened.statistics == own.statistics
    assert opened.statistics.hits >= 4
    plain = Agent(
        models["proposal.diffusion"], models["dynamics.diffusion"], objective=towards(1.0), settings=own.settings
    )
    plain.save(tmp_path / "plain")
    with pytest.raises(ConfigError, match="saved without a tube"):
        AheadAgent.load(tmp_path / "plain", objective=towards(1.0))
    given = AheadAgent.load(tmp_path / "plain", objective=towards(1.0), tube=tube)
    assert _drive(given) == _drive(_agent(models, tube))
    assert type(Agent.load(tmp_path / "own", objective=towards(1.0))) is Agent
    with pytest.raises(ArtefactError, match="not a tube"):
        Tube.from_dict({**tube.to_dict(), "scale": [1.0]})
