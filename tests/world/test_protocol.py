"""The protocol of evaluation by the step: when a goal counts, which pairs there are, and the graph of sub-goals."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from forethought.core.rng import derive_seed
from forethought.data import Episodes
from forethought.world import WorldModel, preset
from forethought.world.planning import EvaluationConfig, SubgoalConfig, SubgoalGraph, SubgoalPolicy, evaluate_policies
from forethought.world.planning.evaluate import Pairs, choose_pairs, run_policy
from tests.world.conftest import Dots
from tests.world.dots import SPEED, dot_episodes, draw


class Right:
    """Goes to the right, whatever is shown; keeps what it was told."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.goals: list[NDArray[Any]] = []
        self.num_actions = 0

    def begin(self, goals_BHWC: NDArray[Any], seed: int) -> None:
        self.seeds.append(seed)
        self.goals.append(goals_BHWC)

    def act(self, frames_BHWC: NDArray[Any]) -> NDArray[Any]:
        self.num_actions += 1
        return np.tile(np.array([1.0, 0.0], np.float32), (len(frames_BHWC), 1))


def test_a_goal_counts_once_reached_and_again_at_the_end() -> None:
    """Goals 3, 9 and 30 steps ahead: passed, stood upon at the end of 10 steps, and never reached."""
    starts = np.full((3, 2), 0.1)
    goals = starts + np.array([[3 * SPEED, 0], [9 * SPEED, 0], [30 * SPEED, 0]])
    pairs = Pairs(starts, goals, draw(goals), 0, 3)
    policy = Right()
    found = run_policy(policy, pairs, Dots(), 10, 5)
    assert found["any_time"] == [True, True, False]
    assert found["final"] == [False, True, False]
    # Within 0.08, that is 2.67 steps, counts.
    assert found["steps"] == [1, 7, -1]
    assert policy.num_actions == 10
    assert found["path_TBS"].shape == (11, 3, 2)
    assert np.allclose(found["path_TBS"][-1, :, 0], 0.1 + 10 * SPEED)
    solved = run_policy(Right(), Pairs(starts, starts, draw(starts), 0, 3), Dots(), 10, 5)
    assert solved["steps"] == [0, 0, 0]
    assert solved["final"] == [False] * 3


def test_every_seed_has_pairs_of_its_own_and_every_policy_the_same() -> None:
    episodes, arena = dot_episodes(8, 60, seed=3), Dots()
    settings = EvaluationConfig(offset=20, num_pairs=6, num_seeds=3, budget=4, seed=2)
    one, two = Right(), Right()
    result = evaluate_policies({"one": one, "two": two}, episodes, arena, settings)
    assert one.seeds == two.seeds == [derive_seed(2, "world.evaluate", index) for index in range(3)]
    assert all(np.array_equal(a, b) for a, b in zip(one.goals, two.goals, strict=True))
    assert not np.array_equal(one.goals[0], one.goals[1])
    assert result["pairs"] == 18
    assert result["policies"]["one"]["success"] == pytest.approx(np.mean(result["policies"]["one"]["success_by_seed"]))


def test_a_goal_is_the_frame_of_its_own_episode_so_many_steps_on() -> None:
    episodes, arena = dot_episodes(5, 30, seed=4), Dots()
    pairs = choose_pairs(episodes, arena, EvaluationConfig(offset=29, num_pairs=50, drop_trivial=False), 0)
    assert len(pairs.starts_BS) == 5
    rows = [int(np.flatnonzero((episodes.observations == start).all(axis=1))[0]) for start in pairs.starts_BS]
    assert sorted(rows) == [0, 30, 60, 90, 120]
    assert np.array_equal(pairs.goals_BS, episodes.observations[np.add(rows, 29)])
    assert np.array_equal(pairs.goal_frames_BHWC, episodes.array("frames")[np.add(rows, 29)])


class Place(WorldModel):
    """Its latent is the place of the dot, so that a graph's lengths are those of the plane."""

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        shade = frames[..., 0].double()
        grid = (torch.arange(32) + 0.5) / 32
        total = shade.sum((-1, -2))
        return torch.stack([(shade.sum(-2) * grid).sum(-1) / total, (shade.sum(-1) * grid).sum(-1) / total], -1).float()


def paths(*corners: list[list[float]]) -> Episodes:
    """One episode a polyline, 0.01 a step."""
    walks = []
    for corner in corners:
        points = np.array(corner)
        parts = [
            np.linspace(a, b, round(float(np.linalg.norm(b - a)) / 0.01), endpoint=False) for a, b in pairwise(points)
        ]
        walks.append(np.concatenate(parts))
    lengths = np.array([len(walk) for walk in walks])
    places = np.concatenate(walks)
    return Episodes(
        {"frames": draw(places), "actions": np.zeros((len(places), 2), np.float32), "observations": places},
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        terminated=np.zeros(len(lengths), bool),
        truncated=np.ones(len(lengths), bool),
    )


def test_the_graph_goes_the_way_of_the_data_and_joins_episodes_where_they_meet() -> None:
    """A path to the right and, from its middle, one upwards: their joint length, there; no way back."""
    model = Place(preset("tiny")).eval()
    episodes = paths([[0.2, 0.3], [0.8, 0.3]], [[0.5, 0.31], [0.5, 0.8]])
    graph = SubgoalGraph(model, episodes, SubgoalConfig(neighbours=3, reach=0.9))
    assert graph.block_step == pytest.approx(0.05, rel=0.02)
    assert len(graph.rows) == 12 + 10
    start, end, top = (torch.from_numpy(draw(np.array([place]))) for place in ([0.2, 0.3], [0.78, 0.3], [0.5, 0.78]))
    goal, above = (model.encode_all(each) for each in (end, top))
    lengths, _ = graph.routes(torch.cat([goal, above]))
    entry = int(graph.nearest(model.encode_all(start))[0])
    assert lengths[0, entry] == pytest.approx(0.55, abs=0.03)
    assert lengths[1, entry] == pytest.approx(0.3 + 0.45, abs=0.04)
    last = int(graph.nearest(goal)[0])
    assert not np.isfinite(lengths[1, last])


def test_the_subgoal_lies_ahead_on_the_path_and_the_goal_takes_over_when_near() -> None:
    model = Place(preset("tiny")).eval()
    graph = SubgoalGraph(model, paths([[0.1, 0.5], [0.9, 0.5]]), SubgoalConfig(lookahead=2.9, reach=0.5))
    policy = SubgoalPolicy(model, graph)
    goal = np.array([[0.88, 0.5]])
    policy.begin(draw(goal), 0)
    for x, expected in ((0.1, 0.25), (0.3, 0.45), (0.5, 0.65)):
        here = model.encode_all(torch.from_numpy(draw(np.array([[x, 0.5]]))))
        assert float(policy.goals_for(here)[0, 0]) == pytest.approx(expected, abs=0.035), x
    near = model.encode_all(torch.from_numpy(draw(np.array([[0.8, 0.5]]))))
    assert float(policy.goals_for(near)[0, 0]) == pytest.approx(0.88, abs=0.003)


def test_a_path_twice_in_the_data_is_as_long_as_once_and_the_shorter_edge_counts() -> None:
    model = Place(preset("tiny")).eval()
    line = [[0.2, 0.5], [0.8, 0.5]]
    once, twice = (SubgoalGraph(model, paths(*[line] * count)) for count in (1, 2))
    goal = model.encode_all(torch.from_numpy(draw(np.array([[0.75, 0.5]]))))
    assert twice.routes(goal)[0][0, 0] == pytest.approx(once.routes(goal)[0][0, 0], rel=1e-3)
    # Two joined places also follow one another in time: the edge between them is there once.
    assert len(once.edges.data) == len(set(zip(*once.edges.nonzero(), strict=True)))
    step = once.edges[0, 1]
    assert step == pytest.approx(0.05, rel=0.02)


def test_anchors_of_inverse_dynamics_stay_in_their_episode() -> None:
    from forethought.world.planning.amortised import _anchors

    rows, room = _anchors(dot_episodes(3, 23), 5)
    assert room.max() == 4
    episode, place = rows // 23, rows % 23
    assert ((place + 5 * room) // 23 == 0).all()
    assert ((place + 5 * (room + 1)) >= 23).all()
    assert np.bincount(episode).tolist() == [18, 18, 18]
