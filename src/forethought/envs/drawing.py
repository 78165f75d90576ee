"""Anti-aliased shapes drawn into many small pictures at once, with NumPy only.

A shape is a function that says how much of a pixel it covers. It is evaluated in a square patch around its centre and
not in the whole picture, which is what makes 64 px pictures cost microseconds. Coordinates are pixels, x to the right
and y down; the centre of the first pixel is (0.5, 0.5).

Legend: B pictures, P side of a patch, W and H pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]
Cover = Callable[[Floats32, Floats32], Floats32]
"""(x_BPP, y_BPP) of pixel centres from the shape's centre, in pixels -> the share of each pixel that it covers."""
_BLEND_PIXELS = 1 << 15


def stamp(
    images: NDArray[np.uint8], centres_B2: NDArray[np.float64], reach: float, cover: Cover, colours_B3: NDArray
) -> None:
    """Draw one shape into each picture, in place.

    reach: no part of a shape lies farther from its centre than this. cover: the shape, evaluated at pixel centres.
    colours_B3: 0 to 255.
    """
    num_images, height, width, _ = images.shape
    side = min(2 * int(np.ceil(reach + 1.0)) + 1, height, width)
    # A patch that would cross the border is moved inside: it still holds all that can be seen of its shape.
    left_B, top_B = (
        np.clip(np.floor(centres_B2[:, axis]).astype(np.int64) - side // 2, 0, limit - side)
        for axis, limit in ((0, width), (1, height))
    )
    steps = np.arange(side)
    x_BP = (left_B[:, None] + steps + 0.5 - centres_B2[:, :1]).astype(np.float32)
    y_BP = (top_B[:, None] + steps + 0.5 - centres_B2[:, 1:]).astype(np.float32)
    covered = cover(x_BP[:, None, :], y_BP[:, :, None])
    flat = images.reshape(num_images, height * width, 3)
    index = ((top_B[:, None] + steps) * width)[:, :, None] + (left_B[:, None] + steps)[:, None, :]
    rows = np.arange(num_images)[:, None]
    index = index.reshape(num_images, side * side)
    under = flat[rows, index].astype(np.float32)
    over = np.asarray(colours_B3, dtype=np.float32)[:, None, :] - under
    over *= covered.reshape(num_images, side * side, 1)
    over += under + np.float32(0.5)
    flat[rows, index] = over.astype(np.uint8)


def disk(radii_B: NDArray[np.float64]) -> Cover:
    """Return a disk."""
    radii = np.asarray(radii_B, dtype=np.float32)[:, None, None]
    return lambda x, y: _from_distance(np.sqrt(x * x + y * y) - radii)


def capsule(ends_B2: NDArray[np.float64], radii_B: NDArray[np.float64]) -> Cover:
    """Return a thick line with round ends, from the centre to an end given relative to it, in pixels."""
    ends = np.asarray(ends_B2, dtype=np.float32)
    radii = np.asarray(radii_B, dtype=np.float32)[:, None, None]
    ex, ey = ends[:, 0, None, None], ends[:, 1, None, None]
    length2 = np.maximum(ex * ex + ey * ey, np.float32(1e-12))

    def cover(x: Floats32, y: Floats32) -> Floats32:
        along = np.clip((x * ex + y * ey) / length2, 0.0, 1.0)
        return _from_distance(np.hypot(x - along * ex, y - along * ey) - radii)

    return cover


def boxes(corners: NDArray[np.float64], angles_B: NDArray[np.float64], scales_B: NDArray[np.float64]) -> Cover:
    """Return a union of boxes (x0, x1, y0, y1) in the frame of a body that is turned by an angle and scaled."""
    cos, sin = (f(angles_B).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    scales = np.asarray(scales_B, dtype=np.float32)[:, None, None]

    def cover(x: Floats32, y: Floats32) -> Floats32:
        u, v = cos * x + sin * y, cos * y - sin * x
        total = np.zeros_like(u)
        for x0, x1, y0, y1 in np.asarray(corners, dtype=np.float32):
            dx = np.abs(u - scales * (x0 + x1) / 2) - scales * (x1 - x0) / 2
            dy = np.abs(v - scales * (y0 + y1) / 2) - scales * (y1 - y0) / 2
            # Covers add up, where distances would leave a seam between boxes that touch.
            total += _from_distance(np.maximum(dx, dy))
        return np.minimum(total, np.float32(1.0))

    return cover


def _from_distance(distance: Floats32) -> Floats32:
    """Return the cover that belongs to a signed distance in pixels (negative inside)."""
    return np.clip(np.float32(0.5) - distance, np.float32(0.0), np.float32(1.0))


def interval_cover(size: int, starts_B: NDArray[np.float64], ends_B: NDArray[np.float64]) -> Floats32:
    """Return how much of each pixel an interval covers, exactly, (B, size); ends in pixels."""
    edges = np.arange(size + 1, dtype=np.float64)
    low = np.maximum(edges[None, :-1], np.asarray(starts_B)[:, None])
    high = np.minimum(edges[None, 1:], np.asarray(ends_B)[:, None])
    return np.clip(high - low, 0.0, 1.0).astype(np.float32)


def blend(under_B3: NDArray, over_B3: NDArray, cover_BHW: Floats32) -> NDArray[np.uint8]:
    """Return pictures of one colour with another laid over it by a cover, (B, H, W, 3); every array has B rows."""
    num_images, height, width = cover_BHW.shape
    # A row is W x 3 numbers side by side: over a last axis of 3, NumPy would take three steps at a time.
    under, over = (np.tile(np.asarray(c, dtype=np.float32), (1, width))[:, None, :] for c in (under_B3, over_B3))
    gain = over - under
    images = np.empty((num_images, height, 3 * width), dtype=np.uint8)
    # A few pictures at a time stay in the cache of a core through all four passes.
    few = max(1, _BLEND_PIXELS // (height * width))
    for begin in range(0, num_images, few):
        rows = slice(begin, begin + few)
        shade = np.repeat(cover_BHW[rows], 3, axis=2)
        shade *= gain[rows]
        shade += under[rows]
        shade += np.float32(0.5)
        images[rows] = shade
    return images.reshape(num_images, height, width, 3)


def rows_are_equal(arrays: list[NDArray[np.float64]]) -> bool:
    """Say whether every row of every array is the same, so that one background serves all pictures."""
    return all(len(values) == 1 or bool((values == values[:1]).all()) for values in arrays)
