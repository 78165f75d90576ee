"""Each perturbation does what its name says, by arithmetic on the states of a world that is known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from forethought.core.rng import generator
from forethought.world.surprise import BenchmarkConfig, perturbation
from forethought.world.surprise.benchmark import Runs, play
from forethought.world.surprise.perturbations import Moment
from tests.world.conftest import Dots
from tests.world.dots import draw, move

Floats = NDArray[np.float64]
COUNT, LENGTH, EVENT = 12, 40, 20
SETTINGS = BenchmarkConfig(num_pairs=COUNT, length=LENGTH, event=EVENT, low=0.1, high=0.9)
LAST = EVENT - 1
"""The step whose move leads to the first frame of the event."""


class Watched(Dots):
    """Dots that remember where they were at every frame that was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[Floats] = []

    def frames(self) -> NDArray[np.uint8]:
        self.path.append(self.states())
        return super().frames()


@pytest.fixture(scope="module")
def runs() -> Runs:
    draws = generator(5, "tests.perturbations")
    return Runs(draws.uniform(0.3, 0.7, (COUNT, 2)), draws.uniform(-0.4, 0.4, (LENGTH, COUNT, 2)))


def path_of(runs: Runs, name: str | None = None, **options: Any) -> Floats:
    """Return places (T, B, 2) under a perturbation that shows what it moves."""
    arena = Watched()
    play(arena, runs, SETTINGS, None if name is None else perturbation(name, **options))
    assert len(arena.path) == LENGTH
    return np.stack(arena.path)


def moved_by(runs: Runs, actions_TBA: NDArray[Any], times: int = 1) -> Floats:
    """Return the places that other actions lead to from the step before the event on."""
    place, path = runs.starts_BS, []
    for step in range(LENGTH):
        path.append(place)
        for _ in range(times if step >= LAST else 1):
            place = move(place, actions_TBA[step] if step >= LAST else runs.actions_TBA[step])
    return np.stack(path)


def test_a_teleport_is_one_jump_of_its_length_inside_the_room(runs: Runs) -> None:
    twin, broken = path_of(runs), path_of(runs, "teleport", distance=0.3)
    assert np.array_equal(broken[:EVENT], twin[:EVENT])
    jump = broken[EVENT] - twin[EVENT]
    assert np.allclose(np.linalg.norm(jump, axis=1), 0.3)
    assert ((broken[EVENT] >= 0.1) & (broken[EVENT] <= 0.9)).all()
    free = ((broken > 0.06) & (broken < 0.94)).all(axis=(0, 2))
    assert free.sum() > COUNT // 2
    assert np.allclose((broken - twin)[EVENT:, free], jump[free])
    directions = np.arctan2(jump[:, 1], jump[:, 0])
    assert np.ptp(directions) > np.pi


def test_a_jump_that_no_direction_leaves_room_for_goes_towards_the_middle(runs: Runs) -> None:
    tight = BenchmarkConfig(num_pairs=COUNT, length=LENGTH, event=EVENT, low=0.45, high=0.55)
    arena = Watched()
    play(arena, runs, tight, perturbation("teleport", distance=0.2))
    before = move(arena.path[LAST], runs.actions_TBA[LAST])
    jump = arena.path[EVENT] - before
    assert np.allclose(np.linalg.norm(jump, axis=1), 0.2)
    assert ((jump * (0.5 - before)).sum(axis=1) > 0).all()


def test_frozen_things_stay_where_they_were(runs: Runs) -> None:
    broken = path_of(runs, "freeze")
    assert np.array_equal(broken[LAST:], np.repeat(broken[LAST][None], LENGTH - LAST, axis=0))


def test_actions_are_turned_round_late_or_twice(runs: Runs) -> None:
    commanded = runs.actions_TBA
    late = commanded[np.maximum(np.arange(LENGTH) - 5, 0)]
    assert np.array_equal(path_of(runs, "sign_flip"), moved_by(runs, -commanded))
    assert np.array_equal(path_of(runs, "delay"), moved_by(runs, late))
    assert np.array_equal(path_of(runs, "double_speed"), moved_by(runs, commanded, times=2))


def test_crossing_goes_a_twentieth_of_the_room_a_step_to_the_other_side_and_ends(runs: Runs) -> None:
    broken = path_of(runs, "wall_penetration")
    begin = broken[LAST]
    side = np.where(begin[:, 0] < 0.5, 1.0, -1.0)
    first = broken[EVENT] - begin
    assert np.allclose(first[:, 0], side * 0.04)
    assert np.array_equal(broken[LAST:, :, 1], np.repeat(begin[None, :, 1], LENGTH - LAST, axis=0))
    steps = np.abs(np.diff(broken[LAST:, :, 0], axis=0))
    assert np.allclose(steps[:11], 0.04)
    assert (steps[11:] == 0).all()


def test_looks_change_by_their_rule_and_nothing_moves_otherwise(runs: Runs) -> None:
    twin = play(Dots(), runs, SETTINGS)
    shown = {
        name: play(Dots(), runs, SETTINGS, perturbation(name)) for name in ("recolour", "lighting", "camera_shift")
    }
    for frames in shown.values():
        assert np.array_equal(frames[:, :EVENT], twin[:, :EVENT])
    after = twin[:, EVENT:]
    assert np.array_equal(shown["recolour"][:, EVENT:], after[..., [2, 0, 1]])
    assert np.array_equal(shown["lighting"][:, EVENT:], (after.astype(np.float32) * 0.7).astype(np.uint8))
    assert np.array_equal(shown["camera_shift"][:, EVENT:, :, 2:], after[:, :, :, :-2])


def test_colours_trade_places_and_a_moved_camera_repeats_the_edge(runs: Runs) -> None:
    seen = generator(6, "tests.perturbations").integers(0, 256, (3, 8, 40, 3)).astype(np.uint8)
    moment = Moment(Dots(), runs.actions_TBA, EVENT, EVENT, generator(0, "tests"), (0, 1), 0.1, 0.9)
    assert np.array_equal(perturbation("recolour").show(seen, moment), seen[..., [2, 0, 1]])
    moved = perturbation("camera_shift").show(seen, moment)
    assert np.array_equal(moved[:, :, 2:], seen[:, :, :-2])
    assert np.array_equal(moved[:, :, :2], seen[:, :, :1].repeat(2, axis=2))


def test_a_duplicate_stands_half_the_room_away_and_does_the_same(runs: Runs) -> None:
    places = path_of(runs)[EVENT:].swapaxes(0, 1).reshape(-1, 2)
    copies = 0.1 + (places - 0.1 + 0.4) % 0.8
    shown = play(Dots(), runs, SETTINGS, perturbation("duplicate"))[:, EVENT:].reshape(-1, 32, 32, 3)
    one, two = draw(places).astype(int), draw(copies).astype(int)
    apart = (np.minimum(one, two).max(axis=(1, 2, 3)) < 8) & (np.linalg.norm(places - copies, axis=1) > 0.3)
    assert apart.sum() > 100
    assert np.array_equal(shown[apart], np.maximum(one, two)[apart])


def test_what_cannot_be_seen_leaves_the_ground_and_goes_on_acting(runs: Runs) -> None:
    arena = Dots()
    shown = play(arena, runs, SETTINGS, perturbation("vanish"))
    assert not shown[:, EVENT:].any()
    assert np.allclose(arena.states(), move(path_of(runs)[-1], runs.actions_TBA[-1]))
