"""Planning to goal images: every policy against its baselines, pairs, sub-goals, and the rules of the protocol."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from forethought.core.errors import ConfigError, DataError, InputError
from forethought.data import Episodes
from forethought.envs import TwoRooms
from forethought.world import WorldModel, preset
from forethought.world.collecting import CollectConfig, collect_episodes
from forethought.world.planning import (
    EvaluationConfig,
    GoalConfig,
    GoalPolicy,
    InversePolicy,
    LatentDynamics,
    NoOpPolicy,
    RandomPolicy,
    SubgoalGraph,
    SubgoalPolicy,
    SystemArena,
    choose_pairs,
    evaluate_policies,
    fit_inverse,
)
from forethought.world.planning.dynamics import LatentStart
from forethought.world.planning.evaluate import run_policy
from tests.world.conftest import Dots
from tests.world.dots import dot_episodes

PLAN = GoalConfig(execute=3, over="min", num_candidates=64, num_elites=8, num_iterations=4)


def test_every_way_to_plan_beats_doing_nothing_and_chance(trained: WorldModel, episodes: Episodes) -> None:
    held_out = dot_episodes(8, 60, seed=9)
    policies = {
        "plan": GoalPolicy(trained, PLAN),
        "history": GoalPolicy(trained, GoalConfig(execute=3, history=3, num_candidates=64, num_iterations=4)),
        "subgoals": SubgoalPolicy(trained, SubgoalGraph(trained, episodes), PLAN),
        "inverse": InversePolicy(trained, fit_inverse(trained, episodes)),
        "no-op": NoOpPolicy(np.zeros(2)),
        "random": RandomPolicy(-np.ones(2), np.ones(2)),
    }
    settings = EvaluationConfig(num_pairs=10, num_seeds=2, budget=40)
    result = evaluate_policies(policies, held_out, Dots(), settings)
    rates = {name: each["success"] for name, each in result["policies"].items()}
    assert rates["no-op"] == 0.0
    assert rates["random"] < 0.4
    assert all(rates[name] > 0.6 for name in ("plan", "history", "subgoals", "inverse")), rates
    assert result["pairs"] == 20
    assert result["drawn_pairs"] - result["trivial_pairs"] == 20
    plan = result["policies"]["plan"]
    assert plan["success_interval"][0] < plan["success"] <= plan["success_interval"][1]
    assert plan["final_success"] <= plan["success"]
    assert len(plan["success_by_seed"]) == 2


def test_a_plan_is_a_function_of_the_seed_and_stays_in_the_range_of_the_data(trained: WorldModel) -> None:
    episodes, arena = dot_episodes(4, 60, seed=3), Dots()
    pairs = choose_pairs(episodes, arena, EvaluationConfig(num_pairs=3), 0)
    runs = [run_policy(GoalPolicy(trained, PLAN), pairs, arena, 12, seed) for seed in (1, 1, 2)]
    assert np.array_equal(runs[0]["path_TBS"], runs[1]["path_TBS"])
    assert not np.array_equal(runs[0]["path_TBS"], runs[2]["path_TBS"])
    policy = GoalPolicy(trained, PLAN)
    policy.begin(pairs.goal_frames_BHWC, 0)
    arena.reset(pairs.starts_BS)
    acted = np.stack([policy.act(arena.frames()) for _ in range(15)])
    low, high = trained.action_low.numpy(), trained.action_high.numpy()
    assert (acted >= low - 1e-5).all()
    assert (acted <= high + 1e-5).all()


def test_the_dynamics_of_a_candidate_do_not_depend_on_the_others(trained: WorldModel) -> None:
    draws = torch.Generator().manual_seed(0)
    actions = torch.randn(2, 5, 3, 10, generator=draws)
    start = LatentStart(torch.randn(2, 3, 64, generator=draws), torch.randn(2, 2, 10, generator=draws))
    for history in (1, 3):
        dynamics = LatentDynamics(trained, history)
        states = dynamics(start, actions)
        assert states.shape == (2, 5, 3, 64)
        one = LatentStart(start.latents_BTD[1:], start.past_BTA[1:])
        assert torch.allclose(dynamics(one, actions[1:, 2:3])[0, 0], states[1, 2], atol=1e-5)
    with pytest.raises(InputError, match="training mode"):
        LatentDynamics(WorldModel(preset("tiny")))


def test_pairs_are_of_one_episode_and_trivial_ones_are_left_out_and_counted() -> None:
    episodes, arena = dot_episodes(6, 60, seed=4), Dots()
    kept = choose_pairs(episodes, arena, EvaluationConfig(offset=4, num_pairs=40, drop_trivial=False), 0)
    left = choose_pairs(episodes, arena, EvaluationConfig(offset=4, num_pairs=40), 0)
    assert kept.num_trivial == 0
    assert left.num_trivial > 5
    assert left.num_drawn == 40 + left.num_trivial
    assert not arena.reached(left.starts_BS, left.goals_BS).any()
    distance = np.abs(left.starts_BS - left.goals_BS).max()
    assert distance <= 4 * 0.03 + 1e-6
    with pytest.raises(DataError, match="60 steps"):
        choose_pairs(episodes, arena, EvaluationConfig(offset=80), 0)


def test_routes_go_around_a_wall_that_latents_do_not_show(trained: WorldModel) -> None:
    """Episodes go along a U; its two ends are close by, but the way between them is along the U."""
    corner = np.array([[0.3, 0.2], [0.3, 0.8], [0.7, 0.8], [0.7, 0.2]])
    path = np.concatenate([np.linspace(a, b, 31)[:-1] for a, b in pairwise(corner)])
    base = dot_episodes(1, len(path))
    from tests.world.dots import draw

    u_shape = Episodes(
        {"frames": draw(path), "actions": base.actions, "observations": path},
        starts=base.starts,
        lengths=base.lengths,
        terminated=base.terminated,
        truncated=base.truncated,
    )
    graph = SubgoalGraph(trained, u_shape)
    ends = trained.encode_all(torch.from_numpy(draw(path[[0, -1]])))
    lengths, following = graph.routes(ends[1:])
    start = int(graph.nearest(ends[:1])[0])
    assert lengths[0, start] > 8 * graph.block_step
    assert lengths[0, start] > 2 * float((ends[0] - ends[1]).norm())
    node, seen = start, [start]
    while following[0, node] >= 0:
        node = int(following[0, node])
        seen.append(node)
    assert node == graph.nearest(ends[1:])[0]
    assert len(seen) > 10


def test_policies_that_do_not_fit_are_refused(trained: WorldModel) -> None:
    with pytest.raises(ConfigError, match="exceeds the model's 3"):
        GoalPolicy(trained, GoalConfig(history=4))
    with pytest.raises(ConfigError, match="before begin"):
        GoalPolicy(trained).act(np.zeros((1, 32, 32, 3), np.uint8))


def test_two_rooms_are_collected_through_the_door_and_exactly_reset() -> None:
    episodes = collect_episodes(CollectConfig(episodes=20, steps=80, image_size=32))
    again = collect_episodes(CollectConfig(episodes=20, steps=80, image_size=32))
    assert episodes.identity() == again.identity()
    arena = SystemArena(TwoRooms(), 32)
    row = 80 * 3 + 7
    arena.reset(episodes.observations[row : row + 1])
    assert np.abs(arena.frames()[0].astype(int) - episodes.array("frames")[row]).max() <= 1
    for step in range(10):
        arena.step(episodes.actions[row + step : row + step + 1])
    assert np.allclose(arena.states()[0], episodes.observations[row + 10], atol=1e-3)
    sides = episodes.observations.reshape(20, 80, 2)[:, :, 0] > 112
    assert (sides.any(axis=1) & ~sides.all(axis=1)).mean() > 0.2
    with pytest.raises(ConfigError, match="policy of reacher"):
        collect_episodes(CollectConfig(environment="reacher", behaviour="weak"))
