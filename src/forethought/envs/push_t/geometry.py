"""The block of Push-T: its shapes as unions of boxes, its symmetry, and how much of a goal it covers.

Boxes are (x0, x1, y0, y1) in the block's frame, in units of the arena of 512. The T is the published one: a bar of
120 x 30 over a stem of 30 x 90, its origin in the middle of the bar's outer edge.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SHAPES: dict[str, Floats] = {
    "T": np.array([[-60.0, 60.0, 0.0, 30.0], [-15.0, 15.0, 30.0, 120.0]]),
    "small_T": np.array([[-45.0, 45.0, 0.0, 30.0], [-15.0, 15.0, 30.0, 90.0]]),
    "L": np.array([[-15.0, 15.0, 0.0, 120.0], [15.0, 60.0, 90.0, 120.0]]),
    "I": np.array([[-15.0, 15.0, -60.0, 60.0]]),
    "Z": np.array([[-60.0, 15.0, -30.0, 0.0], [-15.0, 60.0, 0.0, 30.0]]),
    "square": np.array([[-40.0, 40.0, -40.0, 40.0]]),
    "plus": np.array([[-60.0, 60.0, -15.0, 15.0], [-15.0, 15.0, 15.0, 60.0], [-15.0, 15.0, -60.0, -15.0]]),
    "U": np.array([[-60.0, 60.0, 0.0, 30.0], [-60.0, -30.0, 30.0, 90.0], [30.0, 60.0, 30.0, 90.0]]),
}
SYMMETRY = {"T": 1, "small_T": 1, "L": 1, "I": 2, "Z": 2, "square": 4, "plus": 4, "U": 1}
"""Turns by a full angle over this number leave a shape as it is."""

NAMES = tuple(SHAPES)


def corners_of(boxes: Floats) -> Floats:
    """Return the corners of boxes, counter-clockwise as y points up, (K, 4, 2)."""
    x0, x1, y0, y1 = boxes.T
    return np.stack([np.stack([x, y], axis=1) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))], axis=1)


def placed(points: Floats, pose: Floats) -> Floats:
    """Return points (..., 2) of the block's frame as places in the arena; a pose is x, y, angle."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    return points @ np.array([[cos, sin], [-sin, cos]]) + pose[:2]


def angle_difference(angles: Floats, goals: Floats, turns: int = 1) -> Floats:
    """Return the smallest angles between two poses of a shape that `turns` rotations leave as it is."""
    period = 2.0 * np.pi / turns
    return np.abs((angles - goals + period / 2.0) % period - period / 2.0)


def coverage(boxes: Floats, pose: Floats, goal: Floats) -> float:
    """Return the share of the goal's area that the block covers, from 0 to 1; exact, by clipping polygons."""
    corners = corners_of(boxes)
    block, target = placed(corners, pose), placed(corners, goal)
    if np.hypot(*(pose[:2] - goal[:2])) > 2.0 * np.hypot(*np.abs(corners).max(axis=(0, 1))):
        return 0.0
    shared = sum(area(clip_polygon(one, other)) for one in block for other in target)
    return shared / sum(area(polygon) for polygon in target)


def area(polygon: Floats) -> float:
    """Return the area of a polygon (V, 2) by the shoelace formula."""
    if len(polygon) < 3:
        return 0.0
    x, y = polygon.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def clip_polygon(subject: Floats, window: Floats) -> Floats:
    """Return the part of a polygon inside a convex one, both with positive orientation (Sutherland-Hodgman)."""
    kept = subject
    for start, end in zip(window, np.roll(window, -1, axis=0), strict=True):
        if len(kept) == 0:
            break
        edge = end - start
        side = edge[0] * (kept[:, 1] - start[1]) - edge[1] * (kept[:, 0] - start[0])
        following, next_side = np.roll(kept, -1, axis=0), np.roll(side, -1)
        points = []
        for point, after, here, there in zip(kept, following, side, next_side, strict=True):
            if here >= 0.0:
                points.append(point)
            if here * there < 0.0:
                points.append(point + (after - point) * here / (here - there))
        kept = np.array(points).reshape(-1, 2)
    return kept
