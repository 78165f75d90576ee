"""Two rooms: a dot, a wall and a door. The published geometry: 224 px, door at y 49 with half-width 14, 5 px a step.

The dot stops where its edge touches a wall; the door lets its centre through over the whole width. Movement is x first,
then y. A goal counts as reached within 16 px. Source: the Two-Room task of arXiv 2603.19312, section 4.

Legend: B environments, S = 2 (x, y), A = 2 (direction times speed).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forethought.envs.drawing import blend, disk, interval_cover, rows_are_equal, stamp
from forethought.envs.system import Factor, Factors, Floats, Images, MovingSystem, colour

SIDE = 224.0
BORDER, WALL = 14.0, 112.0
REACHED = 16.0


class TwoRooms(MovingSystem):
    """The system of two rooms; `reached` is the distance at which a goal counts as reached."""

    name = "TwoRooms"
    state_names = ("x", "y")
    state_low, state_high = (0.0, 0.0), (SIDE, SIDE)
    max_steps = 100
    factors = (
        colour("agent_colour", (220, 40, 40)),
        colour("floor_colour", (255, 255, 255)),
        colour("wall_colour", (0, 0, 0)),
        Factor("agent_radius", (7.0,), (4.0,), (10.0,), changes_dynamics=True),
        Factor("door_position", (49.0,), (40.0,), (184.0,), changes_dynamics=True),
        Factor("door_half_width", (14.0,), (11.0,), (24.0,), changes_dynamics=True),
        Factor("wall_half_width", (5.0,), (3.0,), (9.0,), changes_dynamics=True),
        Factor("speed", (5.0,), (2.0,), (8.0,), changes_dynamics=True),
    )

    def __init__(self, reached: float = REACHED) -> None:
        self.reached = reached

    def draw_states(self, rng: np.random.Generator, factors: Factors) -> Floats:
        """Return places anywhere in either room, not inside the wall."""
        low, high = _limits(factors)
        near, far = _band(factors)
        num_environments = len(low)
        right = rng.random(num_environments) < 0.5
        x = rng.uniform(np.where(right, far, low), np.where(right, high, near))
        return np.stack([x, rng.uniform(low, high)], axis=1)

    def success(self, states_BS: Floats, goals_BS: Floats, factors: Factors) -> NDArray[np.bool_]:
        """Say which dots are nearer to their goal than the distance that counts."""
        return np.hypot(*(states_BS - goals_BS).T) < self.reached

    def move(self, states_BS: Floats, actions_BA: Floats, factors: Factors) -> Floats:
        """Return where dots come to in one step: a pure function of states, actions in bounds, and factors."""
        low, high = _limits(factors)
        near, far = _band(factors)
        door, half = factors["door_position"][:, 0], factors["door_half_width"][:, 0]
        x, y = states_BS[:, 0], states_BS[:, 1]
        step = factors["speed"] * actions_BA
        moved = np.clip(x + step[:, 0], low, high)
        # A dot beside the door stops at the wall that it comes from, even where one step would carry it across.
        shut = np.abs(y - door) > half + 1e-9  # whoever was clipped to the opening's edge is in it
        inside = (x > near) & (x < far)
        moved = np.where(shut & ~inside & (x <= near), np.minimum(moved, near), moved)
        moved = np.where(shut & ~inside & (x >= far), np.maximum(moved, far), moved)
        aside = np.clip(y + step[:, 1], low, high)
        # Whoever is in the passage before or after the step keeps to the opening: corners are not cut.
        within = (inside | ((moved > near) & (moved < far))) & ~shut
        return np.stack([moved, np.where(within, np.clip(aside, door - half, door + half), aside)], axis=1)

    def paint(self, states_BS: Floats, size: int, factors: Factors) -> Images:
        """Return pictures of states."""
        scale = size / SIDE
        named = ("floor_colour", "wall_colour", "door_position", "door_half_width", "wall_half_width")
        parts = [factors[name] for name in named]
        if rows_are_equal(parts):
            images = np.repeat(_rooms(size, *(part[:1] for part in parts)), len(states_BS), axis=0)
        else:
            images = _rooms(size, *parts)
        radii = factors["agent_radius"][:, 0] * scale
        stamp(images, states_BS * scale, float(radii.max(initial=0.0)), disk(radii), factors["agent_colour"])
        return images


def _limits(factors: Factors) -> tuple[Floats, Floats]:
    """Return the range of a dot's centre along each axis."""
    edge = BORDER + factors["agent_radius"][:, 0]
    return edge, SIDE - edge


def _band(factors: Factors) -> tuple[Floats, Floats]:
    """Return the range of x that the wall forbids to a dot's centre beside the door."""
    half = factors["wall_half_width"][:, 0] + factors["agent_radius"][:, 0]
    return WALL - half, WALL + half


def _rooms(size: int, floor: Floats, wall: Floats, door: Floats, half: Floats, thick: Floats) -> Images:
    scale = size / SIDE
    inner = interval_cover(size, np.array([BORDER * scale]), np.array([(SIDE - BORDER) * scale]))
    frame = 1.0 - inner[:, :, None] * inner[:, None, :]
    across = interval_cover(size, (WALL - thick[:, 0]) * scale, (WALL + thick[:, 0]) * scale)
    opening = interval_cover(size, (door - half)[:, 0] * scale, (door + half)[:, 0] * scale)
    return blend(floor, wall, np.maximum(frame, (1.0 - opening)[:, :, None] * across[:, None, :]))
