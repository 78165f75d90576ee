"""Charts as SVG text that takes the page's colours, light or dark; no script is needed to see them."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Matplotlib wants concrete colours; these two stand for the page's ink and are replaced after drawing.
_INK, _FAINT = "#010203", "#040506"
PALETTE = ("#2f6fde", "#d9742b", "#2a9d6e", "#a855b5", "#b8902a", "#d1495b")

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
Bands = Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]


def curves(
    series: Series,
    *,
    x_label: str,
    y_label: str,
    levels: Mapping[str, float] | None = None,
    bands: Bands | None = None,
) -> str:
    """Draw named (x, y) lines, bands (x, low, high) in the colour of their line, and horizontal lines at levels."""
    figure, axes = _figure(7.2, 3.4)
    for colour, (name, (x, y)) in zip(_colours(), series.items(), strict=False):
        marker = "o" if len(x) <= 20 else None
        axes.plot(x, y, color=colour, linewidth=1.8, label=name, marker=marker, markersize=4)
        if bands and name in bands:
            axes.fill_between(*bands[name], color=colour, alpha=0.15, linewidth=0)
    for name, level in (levels or {}).items():
        axes.axhline(level, color=_FAINT, linewidth=1.0, linestyle="--")
        axes.annotate(
            name,
            (1.0, level),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9,
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
    return _svg(figure, f"{y_label} against {x_label}: {', '.join(series)}")


def bars(values: Mapping[str, float], *, label: str, intervals: Mapping[str, Sequence[float]] | None = None) -> str:
    """Draw horizontal bars with their values written at the end, and intervals where given."""
    figure, axes = _figure(7.2, 0.5 * len(values) + 0.9)
    names = list(values)
    heights = [values[name] for name in names]
    axes.barh(names, heights, color=[colour for colour, _ in zip(_colours(), names, strict=False)], height=0.62)
    for row, name in enumerate(names):
        end = values[name]
        if intervals and name in intervals:
            low, high = intervals[name]
            axes.plot([low, high], [row, row], color=_INK, linewidth=1.4)
            end = max(end, high)
        axes.annotate(
            f"{values[name]:,.4g}", (end, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=10
        )
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.margins(x=0.14)
    if min([*heights, *(bounds[0] for bounds in (intervals or {}).values())], default=0.0) < 0:
        axes.axvline(0.0, color=_INK, linewidth=0.8)
    else:
        axes.set_xlim(left=0)
    return _svg(figure, f"{label}: " + ", ".join(f"{name} {values[name]:.4g}" for name in names))


def smooth(values: Sequence[float], share: float = 0.02) -> list[float]:
    """Return a centred moving mean over a share of the points, for noisy curves; the ends use what there is."""
    half = int(len(values) * share / 2)
    if half == 0:
        return list(values)
    result: list[float] = []
    for at in range(len(values)):
        window = values[max(0, at - half) : at + half + 1]
        result.append(sum(window) / len(window))
    return result


def _colours() -> list[str]:
    return [*PALETTE] * 4


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.grid(axis="x" if height < 3 else "y", color=_FAINT, alpha=0.35, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any, description: str) -> str:
    from matplotlib import rc_context

    out = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "forethought", "text.color": _INK}
    with rc_context(settings):
        for axes in figure.axes:
            for text in axes.texts:
                text.set_color(_INK)
            legend = axes.get_legend()
            for text in legend.get_texts() if legend else ():
                text.set_color(_INK)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    drawing = out.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(_INK, "currentColor").replace(_FAINT, "var(--faint)")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawing, count=1)
    drawing = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawing, count=1)
    return drawing.replace("<svg", f'<svg role="img" aria-label="{_attribute(description)}"', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
