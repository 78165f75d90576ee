"""Episodes in environments: collecting, going on after a kill, evaluation, baselines, distillation, ONNX."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from forethought.control import Agent, SSRConfig, collect, distil, evaluate, export_onnx, preset
from forethought.control.agent import AgentConfig
from forethought.control.models import ClonedPolicy, MBOPProposal, ModelConfig, NetworkConfig
from forethought.control.running import (
    ExploreConfig,
    RandomPolicy,
    ReactivePolicy,
    ScriptedPolicy,
    known,
    run_episodes,
    write_csv,
)
from forethought.core.errors import ConfigError, DataError
from tests.control.integrator import Integrator, episodes, score, towards


def _pd(observation):
    return [-1.0 * observation[0] - 1.5 * observation[1]]


def test_collected_actions_are_the_commanded_ones_and_episodes_are_whole(tmp_path):
    policy = ScriptedPolicy(_pd, num_robots=3)
    data = collect(lambda: Integrator(-1.0), policy, tmp_path / "play", episodes=5, seed=4)
    assert data.num_episodes == 5
    first = data.episode(0)
    assert np.allclose(first["actions"][:, 0], [_pd(row)[0] for row in first["observations"]], atol=1e-5)
    assert data.finals["observations"].shape == (5, 2)
    assert (data.terminated | data.truncated).all()


def test_collecting_goes_on_where_it_was_killed(tmp_path):
    made = []

    class Dying(Integrator):
        def step(self, action):
            made.append(1)
            if len(made) == 75:
                raise KeyboardInterrupt
            return super().step(action)

    explore = ExploreConfig(noise=0.3, uniform=0.1)

    def go(environment, place):
        return collect(environment, ScriptedPolicy(_pd), place, episodes=4, explore=explore, seed=1)

    with pytest.raises(KeyboardInterrupt):
        go(Dying, tmp_path / "cut")
    resumed, whole = go(Integrator, tmp_path / "cut"), go(Integrator, tmp_path / "whole")
    assert resumed.identity() == whole.identity()


def test_an_episode_depends_on_its_seed_and_not_on_how_many_run_at_a_time():
    def returns(robots):
        runs = run_episodes(Integrator, ScriptedPolicy(_pd, num_robots=robots), 6, seed=3)
        return [run.total for run in sorted(runs, key=lambda run: run.number)]

    assert returns(1) == returns(4)
    assert len(set(returns(1))) == 6


def test_a_broken_simulation_is_named():
    class Broken(Integrator):
        def step(self, action):
            observation, *rest = super().step(action)
            return observation * np.nan, *rest

    with pytest.raises(DataError, match="episode 0 at step 1"):
        list(run_episodes(Broken, ScriptedPolicy(_pd), 1))


def test_evaluation_reports_every_episode_and_its_uncertainty(tmp_path):
    figures = evaluate(Integrator, lambda seed: ScriptedPolicy(_pd), episodes=4, seeds=[0, 1], env_id="Hopper-v5")
    totals = [row["return"] for row in figures["per_episode"]]
    assert figures["return_mean"] == pytest.approx(np.mean(totals))
    assert figures["return_interval"][0] < figures["return_mean"] < figures["return_interval"][1]
    assert figures["score"] == pytest.approx(known("Hopper-v4").score(figures["return_mean"]))
    write_csv(figures["per_episode"], tmp_path / "episodes.csv")
    rows = list(csv.DictReader((tmp_path / "episodes.csv").read_text().splitlines()))
    assert [float(row["return"]) for row in rows] == totals
    with pytest.raises(ConfigError, match="no seed twice"):
        evaluate(Integrator, lambda seed: ScriptedPolicy(_pd), episodes=1, seeds=[0, 0])


def test_reference_scores_and_health_ranges():
    assert known("Walker2d-v4").score(4592.3) == pytest.approx(100.0)
    assert known("Pendulum-v1") is None
    upright = np.zeros((2, 11))
    upright[:, 0] = [1.2, 0.6]
    assert known("Hopper-v5").ended(upright).tolist() == [False, True]


def test_random_actions_are_held_and_seeded():
    first, again = (RandomPolicy([-2.0], [2.0], seed=1, hold=3, num_robots=2) for _ in range(2))
    drawn = [first.act(np.zeros((2, 2))).copy() for _ in range(6)]
    assert np.array_equal(drawn, [again.act(np.zeros((2, 2))).copy() for _ in range(6)])
    assert np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[2], drawn[3])


def test_the_baselines_plan_in_the_same_frame(models, train_part):
    cloned, one_step = train_part("policy.cloning", steps=100), models["dynamics.one-step"]
    mbop = MBOPProposal(cloned, one_step, noise=0.8)
    mbop.horizon = one_step.horizon
    settings = AgentConfig(execute=2, planner=SSRConfig(ranking="soft", temperature=0.2))
    planning = score(Agent(mbop, one_step, objective=towards(0.0), settings=settings), num=2)
    lone = AgentConfig(execute=2, planner=SSRConfig(num_samples=1, warm_start=False))
    proposal, dynamics = models["proposal.diffusion"], models["dynamics.diffusion"]
    policy = score(Agent(proposal, dynamics, objective=towards(0.0), settings=lone), num=2)
    # One sample of the data knows no goal; many of them, ranked, do.
    assert planning > policy + 0.08


def test_a_policy_distilled_from_the_planner_follows_it_and_runs_as_onnx(agent, tmp_path):
    agent.set_objective(towards(0.5))
    base = preset("tiny").policy
    model = ModelConfig(horizon=1, network=NetworkConfig("tiny"))
    settings = replace(base, model=model, loop=replace(base.loop, steps=150))
    policy = distil(agent, episodes(40, seed=6), tmp_path / "policy", settings, num_states=700)
    assert isinstance(policy, ClonedPolicy)

    def final(policy):
        (run,) = run_episodes(Integrator, policy, 1, seed=2)
        return run.final[0]

    assert abs(final(ReactivePolicy(policy)) - 0.5) < 0.25
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    assert export_onnx(policy, tmp_path / "policy.onnx") < 1e-5


def test_a_reactive_policy_keeps_the_history_it_was_trained_with(models):
    body = models["proposal.diffusion"].body
    model = ClonedPolicy(body, ModelConfig(history=2, horizon=1, network=NetworkConfig("tiny")), seed=3)
    policy = ReactivePolicy(model)
    first = policy.act(np.array([[0.5, 0.0]]))
    policy.executed(np.array([[0.9]]))
    moved = policy.act(np.array([[0.5, 0.0]]))
    assert not np.array_equal(first, moved)
    policy.reset(0)
    assert np.array_equal(policy.act(np.array([[0.5, 0.0]])), first)
    assert torch.equal(model(policy._history.situation([0])), torch.from_numpy(first))
