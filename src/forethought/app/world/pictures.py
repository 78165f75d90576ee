"""Pictures of worlds: a film strip with its trace, a path in a room, imagined frames, an animated preview."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.core import files
from forethought.core.extras import require

Array = NDArray[Any]
SIDE, GAP = 48, 4


def film_strip(rows: dict[str, Array], *, description: str) -> str:
    """Return an SVG of rows of frames uint8 (T, H, W, 3), each row with its name, frames of a time in one column."""
    width = 110 + max(len(frames) for frames in rows.values()) * (SIDE + GAP)
    parts: list[str] = []
    for number, (name, frames) in enumerate(rows.items()):
        top = number * (SIDE + GAP)
        parts.append(f'<text x="0" y="{top + SIDE / 2 + 4}" font-size="12" fill="currentColor">{_escape(name)}</text>')
        parts += [_image(frame, 110 + index * (SIDE + GAP), top) for index, frame in enumerate(frames)]
    return _svg(width, len(rows) * (SIDE + GAP), parts, description)


def trace_under_film(
    frames: Array, traces: dict[str, Sequence[float]], *, event: int, threshold: float, description: str
) -> str:
    """Return an SVG of frames (T, H, W, 3) over the scores of several runs, step by step, with the event marked."""
    length = len(frames)
    shown = np.linspace(0, length - 1, min(14, length)).round().astype(int)
    width, height, top = 14 * (SIDE + GAP), 150, SIDE + 14
    values = np.array([value for trace in traces.values() for value in trace if np.isfinite(value)])
    low, high = min(float(values.min()), 0.0), max(float(values.max()), threshold) * 1.05

    def x(step: float) -> float:
        return (step + 0.5) / length * width

    def y(value: float) -> float:
        return top + height - (value - low) / (high - low) * height

    parts = [_image(frames[step], min(max(x(step) - SIDE / 2, 0), width - SIDE), 0) for step in shown.tolist()]
    mark = x(event)
    parts.append(f'<line x1="{mark}" x2="{mark}" y1="{SIDE}" y2="{top + height}" stroke="#d1495b" stroke-width="1.5"/>')
    parts.append(
        f'<line x1="0" x2="{width}" y1="{y(threshold):.1f}" y2="{y(threshold):.1f}" stroke="currentColor" '
        'stroke-dasharray="4 4" stroke-width="0.8"/>'
    )
    for colour, (name, trace) in zip(("#d9742b", "#2f6fde", "#2a9d6e", "#a855b5"), traces.items(), strict=False):
        points = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in enumerate(trace) if np.isfinite(v))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        offset = 14 * list(traces).index(name)
        parts.append(f'<text x="6" y="{top + 12 + offset}" font-size="12" fill="{colour}">{_escape(name)}</text>')
    return _svg(width, top + height + 6, parts, description)


def paths_over(frame: Array, paths: dict[str, Array], *, span: float, description: str) -> str:
    """Return an SVG of paths (T, 2) in units of 0 to `span` over a frame (H, W, 3)."""
    size = 320
    parts = [_image(frame, 0, 0, size)]
    for colour, (name, path) in zip(("#2f6fde", "#d9742b", "#2a9d6e"), paths.items(), strict=False):
        points = " ".join(f"{px / span * size:.1f},{py / span * size:.1f}" for px, py in np.asarray(path).tolist())
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        offset = 16 * list(paths).index(name)
        parts.append(f'<text x="{size + 12}" y="{18 + offset}" font-size="13" fill="{colour}">{_escape(name)}</text>')
    return _svg(size + 160, size, parts, description)


def write_gif(path: Path, frames: Array, *, scale: int = 3, milliseconds: int = 80) -> None:
    """Write frames uint8 (T, H, W, 3) as an animated GIF.

    Raises:
        MissingExtraError: pillow is not installed.
        StorageError: the disk refused.
    """
    image = require("PIL.Image", extra="world", purpose="writing a GIF")
    pictures = [image.fromarray(np.repeat(np.repeat(frame, scale, axis=0), scale, axis=1)) for frame in frames]
    out = io.BytesIO()
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    files.replace_file(path, out.getvalue())


def _image(frame: Array, x: float, y: float, size: int = SIDE) -> str:
    from matplotlib.image import imsave

    out = io.BytesIO()
    imsave(out, np.ascontiguousarray(frame), format="png", metadata={"Software": ""})
    data = base64.b64encode(out.getvalue()).decode()
    return (
        f'<image x="{x:.1f}" y="{y:.1f}" width="{size}" height="{size}" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{data}"/>'
    )


def _svg(width: float, height: float, parts: list[str], description: str) -> str:
    return (
        f'<svg role="img" aria-label="{_escape(description)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
