"""Push-T: push a T-shaped block to a pose with a round pusher, the published geometry, controller and success rules.

Two rules of success: "state" (arXiv 2603.19312, section 4: pusher and block within 20 of the goal, as one distance of
four numbers, and the angle within 20 degrees, modulo the shape's symmetry) and "coverage" (the block covers more than
95 % of the goal pose, whatever the pusher does).

Legend: B environments, S = 10 numbers of a state, A = 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.core.errors import ConfigError, InputError
from forethought.envs.drawing import boxes, disk, rows_are_equal, stamp
from forethought.envs.push_t.geometry import NAMES, SHAPES, SYMMETRY, angle_difference, coverage
from forethought.envs.push_t.physics import Arena
from forethought.envs.system import Factor, Factors, Floats, Images, Simulation, System, colour

SIDE = 512.0
REACH = 100.0
"""How far ahead of the pusher a relative action of 1 puts its target."""
GOAL_POSE = (256.0, 256.0, np.pi / 4.0)
REACHED, REACHED_ANGLE, REACHED_COVERAGE = 20.0, np.deg2rad(20.0), 0.95

Actions = Literal["relative", "absolute"]
Success = Literal["state", "coverage"]


class PushT(System):
    """The system of Push-T.

    actions: "relative" ([-1, 1], 100 units from where the pusher is) or "absolute" (a place in the arena, 0 to 512).
    success: "state" or "coverage". states: pusher xy, block xy and angle, and their velocities; velocities may be left
    out of a state that is given (5 or 7 numbers), and are then 0.

    Raises:
        ConfigError: an argument is none of those.
    """

    name = "PushT"
    state_names = (
        "pusher_x", "pusher_y", "block_x", "block_y", "block_angle",
        "pusher_velocity_x", "pusher_velocity_y", "block_velocity_x", "block_velocity_y", "block_angular_velocity",
    )  # fmt: skip
    # Wide enough for a block that the pusher, which nothing stops, has squeezed through a wall.
    state_low = (-SIDE, -SIDE, -SIDE, -SIDE, *([-1e5] * 6))
    state_high = (2 * SIDE, 2 * SIDE, 2 * SIDE, 2 * SIDE, *([1e5] * 6))
    max_steps = 300
    factors = (
        colour("pusher_colour", (65, 105, 225)),
        colour("block_colour", (119, 136, 153)),
        colour("goal_colour", (144, 238, 144)),
        colour("floor_colour", (255, 255, 255)),
        Factor("pusher_radius", (15.0,), (10.0,), (20.0,), changes_dynamics=True),
        Factor("block_scale", (1.0,), (0.7,), (1.2,), changes_dynamics=True),
        Factor("block_shape", (0.0,), (0.0,), (len(NAMES) - 1.0,), changes_dynamics=True, whole=True),
        Factor("goal_pose", GOAL_POSE, (0.0, 0.0, -2 * np.pi), (SIDE, SIDE, 2 * np.pi)),
    )

    def __init__(self, actions: Actions = "relative", success: Success = "state") -> None:
        if actions not in ("relative", "absolute") or success not in ("state", "coverage"):
            raise ConfigError(
                f"PushT was given actions {actions!r} and success {success!r}; "
                "actions are 'relative' or 'absolute', success is 'state' or 'coverage'"
            )
        self.relative, self.rule = actions == "relative", success
        self.action_low = (-1.0, -1.0) if self.relative else (0.0, 0.0)
        self.action_high = (1.0, 1.0) if self.relative else (SIDE, SIDE)

    def check_states(self, states_BS: ArrayLike) -> Floats:
        """Return states of ten numbers; five or seven are filled up with velocities of 0.

        Raises:
            InputError: the states have another width or are not finite.
        """
        states = np.array(states_BS, dtype=np.float64, ndmin=2)
        if states.ndim == 2 and states.shape[1] in (5, 7):
            states = np.pad(states, ((0, 0), (0, self.state_dim - states.shape[1])))
        return super().check_states(states)

    def draw_states(self, rng: np.random.Generator, factors: Factors) -> Floats:
        """Return resting states as the published reset draws them, the pusher not inside the block."""
        num_environments = len(factors["block_scale"])
        states = np.zeros((num_environments, self.state_dim))
        for row in range(num_environments):
            shape = SHAPES[shape_names(factors)[row]] * factors["block_scale"][row, 0]
            while True:
                draw = [*rng.integers(50, 450, 2), *rng.integers(100, 400, 2), rng.uniform(-np.pi, np.pi)]
                if gap(shape, np.array(draw)) > factors["pusher_radius"][row, 0]:
                    states[row, :5] = draw
                    break
        return states

    def success(self, states_BS: Floats, goals_BS: Floats, factors: Factors) -> NDArray[np.bool_]:
        """Say which states count as success; the coverage rule looks at `goal_pose` and not at the goal state."""
        if self.rule == "coverage":
            return self.coverage(states_BS, factors) > REACHED_COVERAGE
        far = np.linalg.norm(states_BS[:, :4] - goals_BS[:, :4], axis=1)
        turns = [SYMMETRY[name] for name in shape_names(factors)]
        pairs = zip(states_BS[:, 4], goals_BS[:, 4], turns, strict=True)
        turned = np.array([angle_difference(angle, goal, count) for angle, goal, count in pairs])
        return (far < REACHED) & (turned < REACHED_ANGLE)

    def rewards(self, states_BS: Floats, goals_BS: Floats, factors: Factors) -> Floats:
        """Return coverage over what counts as success, at most 1, under that rule; else success as 0 or 1."""
        if self.rule == "coverage":
            return np.clip(self.coverage(states_BS, factors) / REACHED_COVERAGE, 0.0, 1.0)
        return super().rewards(states_BS, goals_BS, factors)

    def coverage(self, states_BS: Floats, factors: Factors) -> Floats:
        """Return how much of the goal pose each block covers, (B,)."""
        names, scales, goals = shape_names(factors), factors["block_scale"][:, 0], factors["goal_pose"]
        rows = zip(names, scales, states_BS[:, 2:5], goals, strict=True)
        return np.array([coverage(SHAPES[name] * scale, pose, goal) for name, scale, pose, goal in rows])

    def begin(self, states_BS: Floats, factors: Factors) -> Simulation:
        """Return a simulation that stands at the states."""
        return _Pushing(self, states_BS, factors)

    def paint(self, states_BS: Floats, size: int, factors: Factors) -> Images:
        """Return pictures of states: the goal pose, the block over it, the pusher on top."""
        scale = size / SIDE
        named = ("floor_colour", "goal_colour", "goal_pose", "block_shape", "block_scale")
        if rows_are_equal([factors[name] for name in named]):
            one = {name: values[:1] for name, values in factors.items()}
            images = np.repeat(_floor(one, size), len(states_BS), axis=0)
        else:
            images = _floor(factors, size)
        _paint_blocks(images, states_BS[:, 2:5], scale, factors, "block_colour")
        radii = factors["pusher_radius"][:, 0] * scale
        stamp(images, states_BS[:, :2] * scale, float(radii.max(initial=0.0)), disk(radii), factors["pusher_colour"])
        return images


class _Pushing(Simulation):
    """Ten sub-steps of pymunk an environment."""

    def __init__(self, system: PushT, states_BS: Floats, factors: Factors) -> None:
        super().__init__(system, states_BS, factors)
        self._relative = system.relative
        self._arenas = [self._arena(row) for row in range(len(states_BS))]

    def advance(self, actions_BA: Floats) -> Floats:
        states = self.states_BS.copy()
        targets = np.clip(states[:, :2] + REACH * actions_BA, 0.0, SIDE) if self._relative else actions_BA
        for arena, (x, y), state in zip(self._arenas, targets.tolist(), states, strict=True):
            arena.step(x, y)
            arena.read(state)
        if not np.isfinite(states).all():
            raise InputError("the physics of Push-T diverged; the state it was put into overlaps a wall or the pusher")
        return states

    def place(self, states_BS: Floats, which_B: NDArray[np.bool_] | None = None) -> None:
        super().place(states_BS, which_B)
        for row in range(len(self._arenas)) if which_B is None else np.flatnonzero(which_B):
            self._arenas[row] = self._arena(int(row))

    def refactor(self, factors: Mapping[str, Floats], which_B: NDArray[np.bool_]) -> None:
        super().refactor(factors, which_B)
        self.place(self.states_BS, which_B)

    def _arena(self, row: int) -> Arena:
        # A new space a placement: pymunk keeps contacts of the past, and a state is to mean the same every time.
        shape = SHAPES[shape_names(self.factors)[row]]
        arena = Arena(shape, self.factors["pusher_radius"][row, 0], self.factors["block_scale"][row, 0])
        arena.place(self.states_BS[row])
        return arena


def shape_names(factors: Factors) -> list[str]:
    """Return the name of every environment's shape."""
    return [NAMES[round(float(number))] for number in factors["block_shape"][:, 0]]


def gap(shape: Floats, state: Floats) -> float:
    """Return the distance from the pusher's centre to the block, 0 inside; the shape is scaled already."""
    cos, sin = np.cos(state[4]), np.sin(state[4])
    dx, dy = state[0] - state[2], state[1] - state[3]
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    x0, x1, y0, y1 = shape.T
    outside = np.hypot(np.maximum(np.maximum(x0 - u, u - x1), 0.0), np.maximum(np.maximum(y0 - v, v - y1), 0.0))
    return float(outside.min())


def _floor(factors: Factors, size: int) -> Images:
    """Return pictures of the empty arena with the goal pose."""
    colours = np.rint(factors["floor_colour"]).astype(np.uint8)
    images = np.empty((len(colours), size, size, 3), dtype=np.uint8)
    images[:] = colours[:, None, None, :]
    _paint_blocks(images, factors["goal_pose"], size / SIDE, factors, "goal_colour")
    return images


def _paint_blocks(images: Images, poses_B3: Floats, scale: float, factors: Factors, paint: str) -> None:
    """Draw every environment's block at a pose, in place; one pass for each shape that occurs."""
    names = np.array(shape_names(factors))
    for name in dict.fromkeys(names.tolist()):
        rows = names == name
        part = images if rows.all() else np.ascontiguousarray(images[rows])
        sizes_B = factors["block_scale"][rows, 0]
        _stamp_block(part, SHAPES[name], poses_B3[rows], scale, sizes_B, factors[paint][rows])
        if part is not images:
            images[rows] = part


def _stamp_block(images: Images, shape: Floats, poses_B3: Floats, scale: float, sizes_B: Floats, paint: Floats) -> None:
    # Patches are centred on the middle of the shape's extent, which keeps them small.
    middle = np.array([shape[:, :2].min() + shape[:, :2].max(), shape[:, 2:].min() + shape[:, 2:].max()]) / 2.0
    half = np.array([np.ptp(shape[:, :2]), np.ptp(shape[:, 2:])]) / 2.0
    scales = sizes_B * scale
    cos, sin = np.cos(poses_B3[:, 2]), np.sin(poses_B3[:, 2])
    turned = np.stack([cos * middle[0] - sin * middle[1], sin * middle[0] + cos * middle[1]], axis=1)
    centres = poses_B3[:, :2] * scale + turned * scales[:, None]
    corners = shape - np.array([middle[0], middle[0], middle[1], middle[1]])
    reach = float(np.hypot(*half) * scales.max(initial=0.0))
    stamp(images, centres, reach, boxes(corners, poses_B3[:, 2], scales), paint)
