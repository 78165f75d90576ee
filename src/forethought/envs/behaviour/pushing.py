"""Policies for Push-T: a pusher that really pushes, and the weak one that only stays about the block.

The pusher looks at points all along the block's outline. A push at r (from the centre of gravity) along the inward
normal n moves the block by the twist (n, (r x n) / inertia); the best point is the one whose twist points along what is
left to the goal, in a metric where turning by one radian of gyration counts like moving by it. It walks around the
block to that point, pushes while that pays, and chooses again. Mass is 1, so inertia has the unit of an area.

Legend: B environments, C points of contact, S numbers of a state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import ConfigError
from forethought.envs.behaviour.policy import Policy
from forethought.envs.push_t.geometry import SHAPES, SYMMETRY
from forethought.envs.push_t.system import REACH, SIDE, PushT, gap, shape_names
from forethought.envs.system import Factors, Floats, System

SPACING = 7.0
MARGIN = 8.0
"""How far the pusher keeps away from the block while it walks around it."""
INNER = 24.0
"""The pusher's centre stays this far from the edge of the arena."""


@dataclass(frozen=True)
class Outline:
    """Points on a block's outline: place and inward normal (C, 2), both in its frame from the centre of gravity."""

    points_C2: Floats
    normals_C2: Floats
    centre: Floats
    inertia: float
    radius: float
    boxes: Floats

    @staticmethod
    def of(name: str, scale: float) -> Outline:
        """Return the outline of a shape, scaled."""
        boxes = SHAPES[name] * scale
        centre = np.array([boxes[:, :2].mean(), boxes[:, 2:].mean()])
        points, normals = zip(*(side for box in boxes for side in _sides(box)), strict=True)
        found, inward = np.concatenate(points), np.concatenate(normals)
        outside = np.array(
            [gap(boxes, np.array([*(p - n), 0.0, 0.0, 0.0])) > 0.5 for p, n in zip(found, inward, strict=True)]
        )
        found, inward = found[outside] - centre, inward[outside]
        (x0, x1, y0, y1), count = boxes[0], len(boxes)
        # The physics' own inertia: the first box about the origin, times the number of boxes.
        middle2 = ((x0 + x1) / 2) ** 2 + ((y0 + y1) / 2) ** 2
        inertia = count * (((x1 - x0) ** 2 + (y1 - y0) ** 2) / 12.0 + middle2)
        return Outline(found, inward, centre, inertia, float(np.linalg.norm(found, axis=1).max()), boxes)


def _sides(box: Floats) -> list[tuple[Floats, Floats]]:
    x0, x1, y0, y1 = box
    xs, ys = (np.linspace(a, b, max(3, round((b - a) / SPACING)) + 1) for a, b in ((x0, x1), (y0, y1)))
    xs, ys = (xs[:-1] + xs[1:]) / 2.0, (ys[:-1] + ys[1:]) / 2.0
    sides = []
    for y, inward in ((y0, 1.0), (y1, -1.0)):
        sides.append((np.stack([xs, np.full_like(xs, y)], 1), np.tile([0.0, inward], (len(xs), 1))))
    for x, inward in ((x0, 1.0), (x1, -1.0)):
        sides.append((np.stack([np.full_like(ys, x), ys], 1), np.tile([inward, 0.0], (len(ys), 1))))
    return sides


class Pusher(Policy):
    """Pushes the block to the goal's pose.

    strength: the longest push, in units of the arena. precision: it rests when the block is that near to the goal.
    With `finish` it then moves to where the goal has the pusher (the published rule of success wants it there).
    """

    def __init__(self, strength: float = 45.0, precision: float = 4.0, finish: bool = True) -> None:
        if not (strength > 0.0 and precision > 0.0):
            raise ConfigError(f"strength is {strength} and precision {precision}; both must be positive")
        self.strength, self.precision, self.finish = strength, precision, finish

    def begin(
        self, system: System, states_BS: Floats, goals_BS: Floats, factors: Factors, rng: np.random.Generator
    ) -> None:
        """Measure the blocks.

        Raises:
            ConfigError: the system is not Push-T.
        """
        super().begin(system, states_BS, goals_BS, factors, rng)
        if not isinstance(system, PushT):
            raise ConfigError(f"the pusher was given {system.name}; it pushes in PushT only")
        self._relative = system.relative
        names = shape_names(factors)
        made: dict[tuple[str, float], Outline] = {}
        keys = list(zip(names, factors["block_scale"][:, 0].tolist(), strict=True))
        for key in keys:
            made.setdefault(key, Outline.of(*key))
        self._outlines = [made[key] for key in keys]
        self._turns = [SYMMETRY[name] for name in names]
        self._contact: list[int | None] = [None] * len(states_BS)

    def act(self, states_BS: Floats) -> Floats:
        """Return the next actions."""
        targets = np.array([self._target(row, state) for row, state in enumerate(states_BS)]).reshape(-1, 2)
        targets = np.clip(targets, 0.0, SIDE)
        return self.clip((targets - states_BS[:, :2]) / REACH if self._relative else targets)

    def _target(self, row: int, state: Floats) -> Floats:
        """Return where one pusher's target should be."""
        view = _View(self._outlines[row], state, self.factors["pusher_radius"][row, 0])
        left, angle = self._to_go(row, view)
        inertia = view.outline.inertia
        if np.hypot(np.linalg.norm(left), np.sqrt(inertia) * angle) < self.precision:
            self._contact[row] = None
            return _around(view, self.goals_BS[row, :2]) if self.finish else state[:2]
        size = np.sqrt(1.0 + view.levers_C**2 / inertia)
        gain_C = (view.normals_C2 @ left + view.levers_C * angle) / size
        contact = self._choose(row, np.where(view.reachable_C, gain_C, -np.inf), view)
        normal, place = view.normals_C2[contact], view.standing_C2[contact]
        offset = state[:2] - place
        behind = -(offset @ normal)
        aside = offset + normal * behind
        if np.linalg.norm(aside) < 6.0 and -6.0 < behind < 14.0:
            length = float(np.clip(gain_C[contact] / size[contact], 6.0, self.strength))
            return place + normal * (length + 4.0)
        return _around(view, place - normal * MARGIN)

    def _to_go(self, row: int, view: _View) -> tuple[Floats, float]:
        """Return how far the centre of gravity and the angle are from the goal, by the nearest equal pose."""
        goal, state = self.goals_BS[row], view.state
        period = 2.0 * np.pi / self._turns[row]
        angle = float((goal[4] - state[4] + period / 2.0) % period - period / 2.0)
        return goal[2:4] + _rotation(state[4] + angle) @ view.outline.centre - view.centre, angle

    def _choose(self, row: int, gain_C: Floats, view: _View) -> int:
        """Return the contact to push at: the last one while it pays, else the best for its distance."""
        last = self._contact[row]
        if last is not None and gain_C[last] > 0.6 * gain_C.max() and gain_C[last] > 0.0:
            return last
        distance_C = np.linalg.norm(view.standing_C2 - view.state[:2], axis=1)
        contact = int((gain_C - 0.05 * np.abs(gain_C.max()) * distance_C / 100.0).argmax())
        self._contact[row] = contact
        return contact


class _View:
    """A block's outline where it lies now, and where the pusher would have to stand to push at each point."""

    def __init__(self, outline: Outline, state: Floats, pusher_radius: float) -> None:
        turn = _rotation(state[4])
        self.outline, self.state, self.radius = outline, state, pusher_radius
        self.centre = state[2:4] + turn @ outline.centre
        arms = outline.points_C2 @ turn.T
        self.normals_C2 = outline.normals_C2 @ turn.T
        self.levers_C = arms[:, 0] * self.normals_C2[:, 1] - arms[:, 1] * self.normals_C2[:, 0]
        self.standing_C2 = self.centre + arms - self.normals_C2 * (pusher_radius + 2.0)
        self.reachable_C = ((self.standing_C2 > INNER) & (self.standing_C2 < SIDE - INNER)).all(axis=1)


def _around(view: _View, target: Floats) -> Floats:
    """Return a step towards a target that does not touch the block: straight on if free, else along a circle."""
    pusher = view.state[:2]
    away = target - pusher
    steps = pusher + np.linspace(0.1, 1.0, 10)[:, None] * away
    clearance = view.radius + 0.5 * MARGIN
    if all(gap(view.outline.boxes, np.array([*step, *view.state[2:5]])) > clearance - 2.0 for step in steps):
        return pusher + away * min(1.0, 90.0 / max(float(np.linalg.norm(away)), 1e-9))
    radius = view.outline.radius + clearance + MARGIN
    spoke, wanted = pusher - view.centre, target - view.centre
    here, there = np.arctan2(spoke[1], spoke[0]), np.arctan2(wanted[1], wanted[0])
    turn = (there - here + np.pi) % (2.0 * np.pi) - np.pi
    angle = here + np.clip(turn, -0.6, 0.6)
    # Near the target's own direction the circle is left for it, from outside.
    reach = radius if abs(turn) > 0.15 else max(float(np.linalg.norm(wanted)), 1.0)
    return np.clip(view.centre + reach * np.array([np.cos(angle), np.sin(angle)]), INNER, SIDE - INNER)


class NearBlock(Policy):
    """The weak policy: targets drawn evenly within 100 units of the block."""

    def begin(
        self, system: System, states_BS: Floats, goals_BS: Floats, factors: Factors, rng: np.random.Generator
    ) -> None:
        """Check the system.

        Raises:
            ConfigError: the system is not Push-T.
        """
        super().begin(system, states_BS, goals_BS, factors, rng)
        if not isinstance(system, PushT):
            raise ConfigError(f"the weak policy was given {system.name}; it knows PushT only")
        self._relative = system.relative

    def act(self, states_BS: Floats) -> Floats:
        """Return actions whose targets lie about the block."""
        targets = states_BS[:, 2:4] + self.rng.uniform(-REACH, REACH, (len(states_BS), 2))
        return self.clip((targets - states_BS[:, :2]) / REACH if self._relative else targets)


def _rotation(angle: float) -> NDArray[np.float64]:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])
