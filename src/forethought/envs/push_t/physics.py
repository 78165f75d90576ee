"""The physics of one Push-T arena in pymunk: walls, a kinematic pusher under a PD law, a block that slides.

Published constants: arena 512, pusher radius 15, k_p 100, k_v 20, 10 sub-steps of 10 ms a control step, every velocity
of the block lost between sub-steps (quasi-static). The block's inertia counts the bar's twice, as the published
environment does; state for state equality needs it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.core.extras import require
from forethought.envs.push_t.geometry import corners_of

Floats = NDArray[np.float64]

STIFFNESS, DRAG = 100.0, 20.0
NUM_SUBSTEPS, SUBSTEP = 10, 0.01
WALL_LOW, WALL_HIGH, WALL_RADIUS = 5.0, 506.0, 2.0


class Arena:
    """One pymunk space with a pusher and a block.

    Raises:
        MissingExtraError: pymunk is not installed.
    """

    def __init__(self, boxes: Floats, pusher_radius: float, block_scale: float) -> None:
        pymunk = require("pymunk", extra="world", purpose="the physics of Push-T")
        self._space = pymunk.Space()
        self._space.gravity = (0.0, 0.0)
        self._space.damping = 0.0
        self._space.add(*_walls(pymunk, self._space.static_body))
        self._pusher = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self._space.add(self._pusher, pymunk.Circle(self._pusher, pusher_radius))
        self._block = _make_block(pymunk, self._space, boxes * block_scale)

    def place(self, state: Floats) -> None:
        """Put pusher and block of a new arena into a state (pusher xy, block xy, angle, velocities)."""
        pusher, block = self._pusher, self._block
        pusher.position = (float(state[0]), float(state[1]))
        # The centre of gravity is off the origin: the angle goes first, or setting it would move the block.
        block.angle = float(state[4])
        block.position = (float(state[2]), float(state[3]))
        # One sub-step at rest moves nothing, but finds what touches: where shapes overlap, the correction that pymunk
        # carries to the next sub-step is part of the state. The published reset does the same; without it 7 of 60
        # resets (pusher on the block, block in a wall) went another way from the first step on.
        self._space.step(SUBSTEP)
        pusher.velocity = (float(state[5]), float(state[6]))
        block.velocity = (float(state[7]), float(state[8]))
        block.angular_velocity = float(state[9])

    def step(self, target_x: float, target_y: float) -> None:
        """Pull the pusher towards a target for one control step of 0.1 s."""
        pusher, space = self._pusher, self._space
        for _ in range(NUM_SUBSTEPS):
            (x, y), (vx, vy) = pusher.position, pusher.velocity
            ax = STIFFNESS * (target_x - x) - DRAG * vx
            ay = STIFFNESS * (target_y - y) - DRAG * vy
            pusher.velocity = (vx + ax * SUBSTEP, vy + ay * SUBSTEP)
            space.step(SUBSTEP)

    def read(self, into: Floats) -> None:
        """Write the state into an array of ten numbers."""
        pusher, block = self._pusher, self._block
        into[:2] = pusher.position
        into[2:4] = block.position
        into[4] = block.angle
        into[5:7] = pusher.velocity
        into[7:9] = block.velocity
        into[9] = block.angular_velocity


def _walls(pymunk: Any, body: Any) -> list[Any]:
    low, high = WALL_LOW, WALL_HIGH
    ends = (
        ((low, high), (low, low)),
        ((low, low), (high, low)),
        ((high, low), (high, high)),
        ((low, high), (high, high)),
    )
    return [pymunk.Segment(body, start, end, WALL_RADIUS) for start, end in ends]


def _make_block(pymunk: Any, space: Any, boxes: Floats) -> Any:
    mass = 1.0
    polygons = [[(float(x), float(y)) for x, y in corners] for corners in corners_of(boxes)]
    inertia = pymunk.moment_for_poly(mass, vertices=polygons[0])
    body = pymunk.Body(mass, inertia * len(polygons))
    shapes = [pymunk.Poly(body, polygon) for polygon in polygons]
    centres = np.array([tuple(shape.center_of_gravity) for shape in shapes])
    x, y = centres.mean(axis=0)
    body.center_of_gravity = (float(x), float(y))
    space.add(body, *shapes)
    return body
