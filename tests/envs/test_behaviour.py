"""Behaviour policies: what they reach, that they repeat, and that episodes hold what they say."""

from __future__ import annotations

import numpy as np
import pytest

from forethought.core.errors import ConfigError
from forethought.envs import SYSTEMS, PushT, make_system
from forethought.envs.behaviour import POLICIES, Mixture, Pusher, Still, UniformRandom, WayPoints, make_policy, rollout


def collect(environment: str, policy: str, count: int, steps: int | None = None, **arguments):
    return next(rollout(make_system(environment), make_policy(environment, policy), count, steps, **arguments))


@pytest.mark.parametrize("environment", SYSTEMS)
def test_every_policy_repeats_and_keeps_to_the_bounds(environment: str):
    for name in POLICIES[environment]:
        one, two = (collect(environment, name, 4, 12, seed=7, vary=["all"]) for _ in range(2))
        assert np.array_equal(one.states_ETS, two.states_ETS), name
        assert np.array_equal(one.actions_ETA, two.actions_ETA), name
        assert one.states_ETS.shape[:2] == (4, 13)
        assert np.abs(one.actions_ETA).max() <= 1.0
        other = collect(environment, name, 4, 12, seed=8, vary=["all"])
        assert not np.array_equal(one.states_ETS, other.states_ETS), name


def test_the_way_point_expert_always_arrives_and_chance_does_not():
    expert = collect("two-rooms", "expert", 64, seed=1, stop_at_goal=True)
    assert expert.success_ET.any(axis=1).mean() == 1.0
    crossing = np.sign(expert.states_ETS[:, 0, 0] - 112) != np.sign(expert.goals_ES[:, 0] - 112)
    assert crossing.sum() > 20
    still, chance = (
        collect("two-rooms", name, 64, seed=1).success_ET.any(axis=1).mean() for name in ("still", "random")
    )
    assert still < 0.15
    assert chance < 0.4


def test_the_way_point_expert_finds_doors_wherever_they_are():
    moved = collect("two-rooms", "expert", 64, 150, seed=2, vary=["all"])
    assert moved.success_ET.any(axis=1).mean() >= 0.95


def test_noise_makes_actions_as_published():
    """Unit direction + N(0, 2) per coordinate, clipped: most coordinates sit on the bounds; one in twenty repeats."""
    episodes = collect("two-rooms", "data", 64, 100, seed=3)
    actions = episodes.actions_ETA
    assert 0.5 < (np.abs(actions) == 1.0).mean() < 0.75
    # A pair of clipped coordinates repeats by chance too (0.3^2 + ...): compare with a policy that never repeats.
    fresh = next(rollout(make_system("two-rooms"), WayPoints(repeat=0.0), 64, 100, seed=3)).actions_ETA
    interior = [(np.abs(a[:, 1:]) < 1.0).all(axis=2) & (a[:, 1:] == a[:, :-1]).all(axis=2) for a in (actions, fresh)]
    assert interior[0].sum() > 20
    assert interior[1].sum() == 0


def test_the_joint_controller_arrives():
    episodes = collect("reacher", "expert", 32, seed=1, stop_at_goal=True)
    assert episodes.success_ET.any(axis=1).mean() >= 0.95
    assert collect("reacher", "random", 32, seed=1).success_ET.any(axis=1).mean() < 0.4


def test_the_pusher_pushes():
    """Random goal poses: by the published rule, pusher included, most are reached; the weak policy reaches none."""
    expert = collect("push-t", "expert", 16, seed=4, stop_at_goal=True)
    assert expert.success_ET.any(axis=1).mean() >= 0.75
    weak = collect("push-t", "weak", 8, 150, seed=4)
    assert not weak.success_ET.any()
    travelled = np.linalg.norm(np.diff(weak.states_ETS[:, :, 2:4], axis=1), axis=2).sum(axis=1)
    assert np.median(travelled) > 20.0


def test_the_pusher_pushes_absolutely_and_other_shapes_too():
    episodes = next(rollout(PushT(actions="absolute"), Pusher(), 12, seed=5, vary=["block_shape"], stop_at_goal=True))
    assert len(set(episodes.factors["block_shape"][:, 0].tolist())) >= 4
    assert episodes.success_ET.any(axis=1).mean() >= 0.6


def test_pushing_elsewhere_is_refused():
    for policy in (Pusher(), make_policy("push-t", "weak")):
        with pytest.raises(ConfigError, match="TwoRooms"):
            next(rollout(make_system("two-rooms"), policy, 2, 2))


def test_mixture_gives_each_environment_one_policy():
    mixture = Mixture([(0.5, Still()), (0.5, UniformRandom())])
    episodes = next(rollout(make_system("two-rooms"), mixture, 64, 5))
    idle = (episodes.actions_ETA == 0.0).all(axis=(1, 2))
    assert np.array_equal(idle, mixture.chosen_B == 0)
    assert 16 < idle.sum() < 48


def test_episodes_end_at_the_goal_and_say_so():
    episodes = collect("two-rooms", "expert", 16, 100, seed=1, stop_at_goal=True)
    for row in range(16):
        length = episodes.lengths_E[row]
        assert episodes.success_ET[row, length - 1]
        assert not episodes.success_ET[row, : length - 1].any()
        assert (episodes.actions_ETA[row, length:] == 0.0).all()
        assert (episodes.states_ETS[row, length:] == episodes.states_ETS[row, length]).all()
        assert episodes.pixels(row, 32).shape == (length + 1, 32, 32, 3)


def test_actions_leave_the_state_of_their_row():
    episodes = collect("two-rooms", "data", 8, 10, seed=1)
    system = make_system("two-rooms")
    for t in (0, 5, 9):
        moved = system.begin(episodes.states_ETS[:, t], episodes.factors).step(episodes.actions_ETA[:, t])
        assert np.array_equal(moved, episodes.states_ETS[:, t + 1])


def test_batches_add_up():
    batches = list(rollout(make_system("two-rooms"), Still(), 10, 3, batch=4))
    assert [len(batch.states_ETS) for batch in batches] == [4, 4, 2]
    assert not np.array_equal(batches[0].states_ETS, batches[1].states_ETS)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_policy("push-t", "exprt"), "expert"),
        (lambda: make_policy("cube", "expert"), "two-rooms"),
        (lambda: Mixture([(0.0, Still())]), "positive weight"),
        (lambda: Pusher(strength=0.0), "positive"),
        (lambda: next(rollout(make_system("two-rooms"), Still(), 0)), "at least 1"),
        (lambda: next(rollout(make_system("two-rooms"), Still(), 1, vary=["door"])), "door_position"),
    ],
)
def test_bad_input_is_named(call, words: str):
    with pytest.raises(ConfigError, match=words):
        call()
