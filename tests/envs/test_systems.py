"""The laws of the built-in systems: walls, energy, the published Push-T, drawing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from forethought.envs import PushT, Reacher, TwoRooms
from forethought.envs.drawing import boxes, disk, interval_cover, stamp
from forethought.envs.push_t import SHAPES
from forethought.envs.push_t.geometry import angle_difference, area, clip_polygon, corners_of, coverage, placed
from forethought.envs.reacher import kinetic_energy

GOLDEN = json.loads((Path(__file__).parent / "push_t_golden.json").read_text())["episodes"]


def walk(start, actions, **factors):
    system = TwoRooms()
    simulation = system.begin(np.array([start], dtype=float), system.complete(factors, 1))
    return np.array([simulation.step(np.array([action], dtype=float))[0] for action in actions])


def test_a_free_step_is_five_pixels():
    assert walk([50, 100], [[1, -0.5]])[0].tolist() == [55, 97.5]
    assert walk([50, 100], [[9, -9]])[0].tolist() == [55, 95]


def test_the_wall_stops_and_the_door_lets_through():
    blocked = walk([80, 150], [[1, 0]] * 20)
    assert blocked[-1].tolist() == [100, 150]
    through = walk([80, 49], [[1, 0]] * 20)
    assert through[-1, 0] == 180
    back = walk([150, 150], [[-1, 0]] * 20)
    assert back[-1].tolist() == [124, 150]
    assert walk([80, 120], [[1, 0]] * 20, door_position=120.0)[-1, 0] == 180


def test_the_passage_has_sides_and_the_arena_borders():
    path = walk([105, 49], [[0, 1]] * 10)
    assert path[-1].tolist() == [105, 63]
    assert walk([122, 62], [[1, 1]])[0].tolist() == [127, 63]  # corners are not cut on the way out
    assert walk([30, 30], [[-1, -1]] * 10)[-1].tolist() == [21, 21]
    assert walk([200, 200], [[1, 1]] * 10)[-1].tolist() == [203, 203]


def test_nothing_gets_through_the_wall_beside_the_door():
    """Long random walks: whoever changes rooms did so at the height of the door."""
    system, rng = TwoRooms(), np.random.default_rng(0)
    factors = system.complete(system.vary(["all"], rng, 200), 200)
    states = system.draw_states(rng, factors)
    simulation = system.begin(states, factors)
    door, half = factors["door_position"][:, 0], factors["door_half_width"][:, 0]
    crossings = 0
    for _ in range(400):
        before = simulation.states_BS
        after = simulation.step(rng.uniform(-1, 1, (200, 2)) + 0.4 * np.sign(112 - before))
        changed = np.sign(before[:, 0] - 112) != np.sign(after[:, 0] - 112)
        assert (np.abs(after[changed, 1] - door[changed]) <= half[changed] + 1e-9).all()
        crossings += changed.sum()
    assert crossings > 20


def test_sixteen_pixels_count_as_reached():
    system = TwoRooms()
    states, factors = np.array([[50.0, 50.0]] * 2), system.complete(None, 2)
    assert system.success(states, np.add(states, [[15.9, 0.0], [0.0, 16.1]]), factors).tolist() == [True, False]


def test_an_arm_without_friction_keeps_its_energy():
    system = Reacher()
    factors = system.complete({"damping": 0.0}, 3)
    states = np.array([[0.3, 0.8, 1.0, -0.5], [1.0, -1.2, 0.5, 0.5], [0.0, 0.5, -1.0, 0.8]])
    simulation = system.begin(states, factors)
    energy = kinetic_energy(states, factors)
    for _ in range(25):
        simulation.step(np.zeros((3, 2)))
        assert (np.abs(simulation.states_BS[:, 1]) < 2.8).all()
    np.testing.assert_allclose(kinetic_energy(simulation.states_BS, factors), energy, rtol=0.02)


def test_torque_does_work_and_damping_takes_it():
    """The power balance d(energy) = (torque - damping speed) speed holds over a short time."""
    system = Reacher()
    factors = system.complete({"damping": 0.7}, 1)
    start = np.array([[0.4, 0.9, 0.6, -0.4]])
    action = np.array([[0.3, -0.2]])
    end = system.move(start, action, factors)
    speeds = (start[:, 2:] + end[:, 2:]) / 2
    power = ((4.0 * action - 0.7 * speeds) * speeds).sum()
    gained = (kinetic_energy(end, factors) - kinetic_energy(start, factors))[0]
    assert gained == pytest.approx(power * 0.04, rel=0.05)


def test_the_shoulder_counts_modulo_a_turn():
    system = Reacher()
    states, goals = np.array([[np.pi - 0.01, 0.5, 9, 9.0]]), np.array([[-np.pi + 0.02, 0.46, 0, 0.0]])
    assert system.success(states, goals, {}).tolist() == [True]
    assert system.success(states, np.add(goals, [[0, 0.02, 0, 0]]), {}).tolist() == [True]
    assert system.success(states, np.subtract(goals, [[0, 0.02, 0, 0]]), {}).tolist() == [False]


@pytest.mark.parametrize("episode", GOLDEN)
def test_push_t_matches_the_published_environment(episode):
    """State for state over control steps with contacts, two from resets that overlap, recorded from gym-pusht."""
    system = PushT(actions="absolute", success="coverage")
    factors = system.complete(None, 1)
    simulation = system.begin(np.array([episode["start"]]), factors)
    for action, state, covered in zip(episode["actions"], episode["states"], episode["coverage"], strict=True):
        np.testing.assert_allclose(simulation.step([action])[0], state, rtol=0, atol=1e-6)
        assert system.coverage(simulation.states_BS, factors)[0] == pytest.approx(covered, abs=1e-6)
    assert np.ptp(np.array(episode["states"])[:, 2:5], axis=0).max() > 1.0


def test_push_t_matches_gym_pusht_where_it_is_installed():
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed; recorded states are compared instead")
    from gym_pusht.envs.pusht import PushTEnv

    theirs = PushTEnv(obs_type="state")
    system = PushT(actions="absolute", success="coverage")
    rng = np.random.default_rng(0)
    # From 1, 6, 13, 16 and 38 the reset leaves the pusher on the block or the block in a wall.
    for seed in (0, 1, 3, 5, 6, 13, 16, 38):
        theirs.reset(seed=seed)
        simulation = system.begin(np.array([_state_of(theirs)]), system.complete(None, 1))
        for _ in range(60):
            action = np.clip(np.array(theirs.block.position) + rng.normal(0, 60, 2), 0, 512)
            theirs.step(action)
            np.testing.assert_allclose(simulation.step([action])[0], _state_of(theirs), rtol=0, atol=1e-6)


def _state_of(env) -> list[float]:
    pusher, block = env.agent, env.block
    return [
        *pusher.position, *block.position, block.angle, *pusher.velocity, *block.velocity, block.angular_velocity
    ]  # fmt: skip


def test_relative_actions_aim_from_where_the_pusher_is():
    start = np.array([[200.0, 300, 100, 100, 0.5, 0, 0, 0, 0, 0]])
    relative, absolute = PushT(), PushT(actions="absolute")
    one = relative.begin(start, relative.complete(None, 1)).step([[0.4, -0.7]])
    other = absolute.begin(start, absolute.complete(None, 1)).step([[240.0, 230.0]])
    assert np.array_equal(one, other)


def test_the_state_rule_wants_the_pusher_too():
    system, factors = PushT(), PushT().complete(None, 1)
    goal = np.array([[100.0, 100, 300, 300, 0.3, 0, 0, 0, 0, 0]])
    for change, counts in [
        ([12, 0, 12, 0, 0], True),
        ([15, 0, 15, 0, 0], False),
        ([21, 0, 0, 0, 0], False),
        ([0, 0, 0, 0, np.deg2rad(19)], True),
        ([0, 0, 0, 0, np.deg2rad(21)], False),
        ([0, 0, 0, 0, 2 * np.pi], True),
        ([0, 0, 0, 0, np.pi], False),
    ]:
        assert system.success(np.add(goal, [[*change, 0, 0, 0, 0, 0]]), goal, factors)[0] == counts, change
    bar = system.complete({"block_shape": list(SHAPES).index("I")}, 1)
    assert system.success(np.add(goal, [[0, 0, 0, 0, np.pi, 0, 0, 0, 0, 0]]), goal, bar)[0]


def test_coverage_is_exact():
    square = np.array([[-10.0, 10.0, -10.0, 10.0]])
    at = np.array([50.0, 50.0, 0.3])
    assert coverage(square, at, at) == pytest.approx(1.0)
    moved = np.add(at, [*placed(np.array([5.0, 0.0]), np.array([0, 0, 0.3])), 0.0])
    assert coverage(square, moved, at) == pytest.approx(0.75)
    eighth = coverage(square, np.array([0.0, 0, np.pi / 4]), np.array([0.0, 0, 0]))
    assert eighth == pytest.approx(2 * (np.sqrt(2) - 1))
    assert coverage(SHAPES["T"], np.array([0.0, 0, 0]), np.array([500.0, 0, 0])) == 0.0


def test_clipping_polygons():
    box = corners_of(np.array([[0.0, 4.0, 0.0, 2.0]]))[0]
    assert area(box) == 8.0
    assert area(clip_polygon(box, np.add(box, 1.0))) == pytest.approx(3.0)
    assert area(clip_polygon(box, np.add(box, [9.0, 0.0]))) == 0.0


def test_angles_modulo_symmetry():
    assert angle_difference(np.array(0.1), np.array(2 * np.pi + 0.2)) == pytest.approx(0.1)
    assert angle_difference(np.array(0.1), np.array(np.pi / 2), 4) == pytest.approx(0.1)


def test_reset_in_contact_is_close_to_the_path():
    """Contacts of the past are not part of a state: a copy made in the middle of a push stays within a unit."""
    system, episode = PushT(actions="absolute"), GOLDEN[0]
    factors = system.complete(None, 1)
    simulation = system.begin(np.array([episode["start"]]), factors)
    for action in episode["actions"][:20]:
        simulation.step([action])
    copy = system.begin(simulation.states_BS, factors)
    for action in episode["actions"][20:30]:
        np.testing.assert_allclose(copy.step([action]), simulation.step([action]), rtol=0.05, atol=3.0)


def test_a_disk_has_its_area_and_its_place():
    images = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    centres = np.array([[20.3, 30.7], [40.0, 10.5]])
    stamp(images, centres, 6.0, disk(np.array([6.0, 3.5])), np.array([[255, 0, 0], [0, 255, 0]]))
    for row, (radius, channel) in enumerate([(6.0, 0), (3.5, 1)]):
        mass = images[row, :, :, channel] / 255.0
        assert mass.sum() == pytest.approx(np.pi * radius**2, rel=0.01)
        grid = np.arange(64) + 0.5
        assert (mass.sum(axis=0) @ grid) / mass.sum() == pytest.approx(centres[row, 0], abs=0.05)
        assert (mass.sum(axis=1) @ grid) / mass.sum() == pytest.approx(centres[row, 1], abs=0.05)
        assert images[row].sum() == images[row, :, :, channel].sum()


@pytest.mark.parametrize("centre", [(-3.0, 10.0), (63.0, 63.9), (-90.0, 20.0), (20.0, 400.0)])
def test_shapes_over_the_border_are_cut_there(centre):
    """The visible part is the same as in a picture with room around it."""
    small, large = np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 96, 96, 3), np.uint8)
    for images, shift in ((small, 0.0), (large, 16.0)):
        stamp(images, np.array([centre]) + shift, 9.0, disk(np.array([9.0])), np.array([[200, 100, 50]]))
    assert np.array_equal(small, large[:, 16:80, 16:80])


def test_touching_boxes_have_no_seam_and_the_right_area():
    images = np.zeros((1, 96, 96, 3), np.uint8)
    stamp(images, np.array([[48.0, 48.0]]), 40.0, boxes(SHAPES["T"] / 4, np.array([0.7]), np.array([1.0])), [[255] * 3])
    assert images[..., 0].sum() / 255 == pytest.approx((120 * 30 + 30 * 90) / 16, rel=0.02)
    along = placed(np.array([0.0, 7.5]), np.array([48.0, 48.0, 0.7]))
    assert images[0, int(along[1]), int(along[0]), 0] == 255


def test_intervals_cover_exactly():
    cover = interval_cover(5, np.array([0.25]), np.array([3.5]))[0]
    assert cover.tolist() == [0.75, 1.0, 1.0, 0.5, 0.0]


def test_the_dot_is_drawn_where_it_is():
    system = TwoRooms()
    for size in (32, 64, 224):
        picture = system.render_batch([[60.0, 150.0]], size)[0].astype(float)
        red = picture[:, :, 0] - picture[:, :, 1]
        grid = (np.arange(size) + 0.5) * 224 / size
        assert (red.sum(axis=0) @ grid) / red.sum() == pytest.approx(60.0, abs=0.5)
        assert (red.sum(axis=1) @ grid) / red.sum() == pytest.approx(150.0, abs=0.5)
