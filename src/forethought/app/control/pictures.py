"""Pictures of control: returns of episodes, errors by horizon, the monitor's trace, stills of a film."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forethought.app import charts
from forethought.app.world.pictures import film_strip
from forethought.core.extras import require

_STILLS, _SIDE = 10, 96


def returns_chart(rows: Sequence[Mapping[str, Any]], interval: Sequence[float] | None, mean: float) -> str:
    """Draw every episode's return, seeds side by side, with the mean of all and its 95 % interval."""
    figure, axes = charts._figure(7.2, 3.2)
    seeds = sorted({row["seed"] for row in rows})
    for place, seed in enumerate(seeds):
        values = [row["return"] for row in rows if row["seed"] == seed]
        spread = np.linspace(-0.3, 0.3, len(values)) if len(values) > 1 else np.zeros(1)
        colour = charts.PALETTE[place % len(charts.PALETTE)]
        axes.plot(place + spread, values, "o", color=colour, markersize=4, alpha=0.8)
        axes.plot([place - 0.35, place + 0.35], [np.mean(values)] * 2, color=colour, linewidth=2.2)
    if interval is not None:
        axes.axhspan(interval[0], interval[1], color=charts.PALETTE[0], alpha=0.14, linewidth=0)
    axes.axhline(mean, color=charts._FAINT, linewidth=1.0, linestyle="--")
    axes.set_xticks(range(len(seeds)), [f"seed {seed}" for seed in seeds])
    axes.set_ylabel("return of an episode")
    return charts._svg(figure, f"returns of {len(rows)} episodes over {len(seeds)} seeds, mean {mean:.4g}")


def horizon_chart(errors: Mapping[str, Sequence[float]]) -> str:
    """Draw named errors by steps ahead."""
    series = {name: (list(range(1, len(values) + 1)), list(values)) for name, values in errors.items()}
    return charts.curves(series, x_label="steps ahead", y_label="error, standard deviations")


def monitor_chart(trace: Mapping[str, Any]) -> str:
    """Draw how surprising each observation was, where episodes begin and the wish to adapt arose, and given marks."""
    figure, axes = charts._figure(7.2, 3.0)
    values = [np.nan if value is None else min(value, 10.0) for value in trace["z"]]
    axes.plot(range(len(values)), values, color=charts.PALETTE[0], linewidth=1.0)
    for begin in trace["begins"]:
        axes.axvline(begin, color=charts._FAINT, linewidth=0.6)
    alarm = trace["alarm_at"]
    marks = {**trace.get("marks", {}), **({} if alarm is None else {alarm: "wish to adapt"})}
    for row, (step, name) in enumerate(sorted(marks.items())):
        axes.axvline(step, color=charts.PALETTE[5 if step == alarm else 2], linewidth=1.8)
        axes.annotate(
            name,
            (step, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4 if row or len(marks) == 1 else -4, -12 * max(row, 1)),
            textcoords="offset points",
            ha="left" if row or len(marks) == 1 else "right",
            fontsize=9,
        )
    axes.set_xlabel("step of the first robot")
    axes.set_ylabel("z of the residual")
    told = "no alarm" if alarm is None else f"alarm at step {alarm}"
    return charts._svg(figure, f"residual monitor over {len(values)} steps, {told}")


def film_stills(film: Path) -> str:
    """Return stills of a film, evenly over it, as one SVG; nothing where the film is gone.

    Raises:
        MissingExtraError: imageio is not installed.
    """
    if not film.is_file():
        return ""
    imageio: Any = require("imageio.v3", extra="control", purpose="reading a video")
    frames = np.asarray(imageio.imread(film))
    chosen = np.linspace(0, len(frames) - 1, min(_STILLS, len(frames))).round().astype(int)
    step = max(1, min(frames.shape[1:3]) // _SIDE)
    name = film.stem.replace("-", " ").replace("episode", "ep.")
    return film_strip({name: frames[chosen, ::step, ::step, :3]}, description=f"{len(chosen)} stills of {film.name}")
