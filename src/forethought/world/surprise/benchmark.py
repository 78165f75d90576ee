"""How well surprise tells broken physics from nominal runs and from changed looks, on matched episodes.

Every perturbed run shares start and actions with its nominal twin up to the event. Frames that show the event while
their context does not are the positives; all nominal frames are the negatives. Starts and actions are those of held-out
episodes.

Legend: B episodes, T steps, S numbers of a state, A numbers of an action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import DataError
from forethought.core.rng import generator
from forethought.data import Episodes
from forethought.stats import Interval, wilson
from forethought.world.planning.evaluate import Arena, states_of
from forethought.world.surprise.metrics import separation
from forethought.world.surprise.monitor import SurpriseMonitor, Trace
from forethought.world.surprise.perturbations import Moment, Perturbation, teleport

Array = NDArray[Any]


@config
class BenchmarkConfig:
    """How many matched pairs, how long, and where the event is.

    places, low, high: the numbers of a state that are a position, and the range it may be moved in.
    """

    num_pairs: int = Field(default=50, ge=4)
    length: int = Field(default=50, ge=4)
    event: int = Field(default=30, ge=1)
    places: tuple[int, ...] = (0, 1)
    low: float = 0.0
    high: float = 1.0
    seed: int = Field(default=0, ge=0)
    max_nominal: int = Field(default=10_000, ge=1)
    """Frames of whole nominal episodes that false flags are counted on."""


@dataclass(frozen=True)
class Runs:
    """Matched runs: starts (B, S) and actions (T, B, A) of held-out episodes."""

    starts_BS: Array
    actions_TBA: Array


def choose_runs(episodes: Episodes, settings: BenchmarkConfig) -> Runs:
    """Draw starts and the actions that follow them from episodes.

    Raises:
        DataError: no episode is long enough.
    """
    counts = np.maximum(episodes.lengths - settings.length + 1, 0)
    total = int(counts.sum())
    if not total:
        raise DataError(
            f"{episodes.source}: no episode has {settings.length} steps (longest: {int(episodes.lengths.max())}); "
            "lower length and event, or collect longer episodes"
        )
    before = np.cumsum(counts) - counts
    picks = generator(settings.seed, "world.surprise.runs").integers(0, total, settings.num_pairs)
    which = np.searchsorted(np.cumsum(counts), picks, side="right")
    rows = picks - before[which] + episodes.starts[which]
    actions = np.nan_to_num(np.asarray(episodes.array("actions"), np.float32))
    return Runs(states_of(episodes)[rows], np.stack([actions[rows + step] for step in range(settings.length)]))


def play(arena: Arena, runs: Runs, settings: BenchmarkConfig, broken: Perturbation | None = None) -> NDArray[np.uint8]:
    """Return the frames (B, T, H, W, 3) of runs, nominal or perturbed from the event on."""
    arena.reset(runs.starts_BS)
    draws = generator(settings.seed, "world.surprise.draws")
    shown: list[Array] = []
    for step in range(len(runs.actions_TBA)):
        moment = Moment(
            arena, runs.actions_TBA, step, settings.event, draws, settings.places, settings.low, settings.high
        )
        frames = arena.frames()
        active = broken is not None and step >= settings.event
        shown.append(broken.show(frames, moment) if broken is not None and active else frames)
        # The move at step event - 1 leads to the frame of the event.
        if broken is not None and step >= settings.event - 1:
            broken.move(moment)
        else:
            arena.step(runs.actions_TBA[step])
    return np.stack(shown, axis=1)


def surprise_benchmark(
    monitor: SurpriseMonitor,
    arena: Arena,
    episodes: Episodes,
    perturbations: Sequence[Perturbation],
    settings: BenchmarkConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return, for every perturbation, AUROC, paired accuracy, rates, delay and effect size; and the false alarms.

    False flags are counted on whole episodes, as a monitor meets them: pieces cut out of episodes begin anywhere and
    with a short context, and were flagged a third as often as the episodes that they were cut from. The interval counts
    frames as what they are worth: flags of neighbouring frames come together, so their number is divided by the design
    effect over episodes (Kish 1965). `failures` says in words what a monitor that
    knows physics would not do: a violation that is not told from nominal runs, a change of looks that surprises more
    than the strongest violation, more false flags than alpha. It is empty for a working model.

    Raises:
        DataError: as choose_runs and flag_rate.
    """
    chosen = settings or BenchmarkConfig()
    runs = choose_runs(episodes, chosen)
    actions_BTA = runs.actions_TBA.swapaxes(0, 1)
    nominal = monitor.traces(play(arena, runs, chosen), actions_BTA)
    z_nominal = np.stack([trace.z for trace in nominal])
    settled = np.stack([trace.valid for trace in nominal]).all(axis=0)
    figures: dict[str, Any] = {}
    for index, broken in enumerate(perturbations):
        traces = monitor.traces(play(arena, runs, chosen, broken), actions_BTA)
        window = _window(broken, chosen, monitor.model.config.frame_skip)
        z = np.stack([trace.z for trace in traces])
        found = separation(z[:, window], z_nominal[:, settled], z_nominal[:, window], seed=chosen.seed)
        figures[broken.name] = {**found.to_dict(), "physical": broken.is_physical, **_delay(traces, chosen.event)}
        if progress is not None:
            progress(index + 1, len(perturbations))
    alarms = int(sum(trace.alarm.any() for trace in nominal))
    rate, effective = flag_rate(*nominal_flags(monitor, episodes, chosen.max_nominal))
    return {
        "pairs": chosen.num_pairs,
        "event": chosen.event,
        "score": monitor.score,
        "alpha": monitor.alpha,
        "false_flag_rate": rate.estimate,
        "false_flag_interval": [rate.low, rate.high],
        "effective_frames": effective,
        "false_alarm_episodes": alarms,
        "perturbations": figures,
        "failures": _failures(figures, rate, monitor.alpha),
    }


def nominal_flags(monitor: SurpriseMonitor, episodes: Episodes, max_frames: int) -> tuple[Array, Array]:
    """Return which frames of whole episodes are flagged and which are judged, (B, T) to the length of the longest."""
    count = int(np.searchsorted(np.cumsum(episodes.lengths), max_frames)) + 1
    lengths = episodes.lengths[:count]
    flags, judged = (np.zeros((len(lengths), int(lengths.max())), bool) for _ in range(2))
    for index, length in enumerate(lengths):
        rows = episodes.episode(index)
        (trace,) = monitor.traces(rows["frames"][None], np.asarray(rows["actions"])[None])
        flags[index, :length], judged[index, :length] = trace.flag, trace.valid
    return flags, judged


def flag_rate(flags_BT: Array, judged_BT: Array) -> tuple[Interval, float]:
    """Return the share of judged frames that are flagged, with Wilson's interval, and how many frames they are worth.

    Raises:
        DataError: no frame was judged.
    """
    counts_B = judged_BT.sum(axis=1).astype(np.float64)
    frames = float(counts_B.sum())
    if not frames:
        raise DataError("no frame was judged; runs must be longer than the model's frame-skip")
    flags_B = (flags_BT & judged_BT).sum(axis=1)
    rate = float(flags_B.sum()) / frames
    # The variance of a ratio over runs, against that of as many independent frames.
    runs = len(counts_B)
    clustered = float(np.square(flags_B - rate * counts_B).sum()) * runs / max(runs - 1, 1) / frames**2
    alone = rate * (1 - rate) / frames
    effective = frames / max(1.0, clustered / alone) if alone > 0 else frames
    count = max(1, round(effective))
    found = wilson(round(rate * count), count)
    return Interval(rate, min(found.low, rate), max(found.high, rate), found.level), effective


def _failures(figures: dict[str, Any], rate: Interval, alpha: float) -> list[str]:
    reasons = [
        f"{name} is not told from nominal runs (AUROC {each['auroc']:.2f}, 95 % from {each['auroc_interval'][0]:.2f})"
        for name, each in figures.items()
        if each["physical"] and each["auroc_interval"][0] <= 0.5
    ]
    physical, visual = ({k: v["mean_z"] for k, v in figures.items() if v["physical"] is kind} for kind in (True, False))
    if physical and visual and max(visual.values()) >= max(physical.values()):
        strongest = max(visual, key=lambda name: visual[name])
        reasons.append(f"{strongest}, a change of looks only, surprises more than any violation")
    if rate.low > alpha:
        reasons.append(f"{rate.estimate:.1%} of nominal frames are flagged, at alpha {alpha:g}")
    return reasons


def psychometric_curve(
    monitor: SurpriseMonitor,
    arena: Arena,
    episodes: Episodes,
    distances: Sequence[float],
    settings: BenchmarkConfig | None = None,
) -> dict[str, list[float]]:
    """Return the AUROC of teleports against their distance (in the units of the state); 0 gives one half.

    `low` and `high` are its 95 % interval by bootstrap over runs.

    Raises:
        DataError: as choose_runs.
    """
    chosen = settings or BenchmarkConfig()
    runs = choose_runs(episodes, chosen)
    actions_BTA = runs.actions_TBA.swapaxes(0, 1)
    window = slice(chosen.event, chosen.event + monitor.model.config.frame_skip)
    twins = np.stack([trace.z for trace in monitor.traces(play(arena, runs, chosen), actions_BTA)])[:, window]
    curve: dict[str, list[float]] = {"distance": [], "auroc": [], "low": [], "high": []}
    for distance in distances:
        traces = monitor.traces(play(arena, runs, chosen, teleport(distance)), actions_BTA)
        z = np.stack([trace.z for trace in traces])[:, window]
        found = separation(z, twins, twins, seed=chosen.seed).auroc
        row = {"distance": float(distance), "auroc": found.estimate, "low": found.low, "high": found.high}
        for name, value in row.items():
            curve[name].append(value)
    return curve


def _window(broken: Perturbation, settings: BenchmarkConfig, skip: int) -> slice:
    last = skip - 1 if broken.last is None else broken.last
    return slice(settings.event + broken.first, min(settings.event + last + 1, settings.length))


def _delay(traces: Sequence[Trace], event: int) -> dict[str, Any]:
    """Return how many steps after the event the first flag comes, and in how many episodes it does."""
    after = [np.flatnonzero(trace.flag[event:]) for trace in traces]
    seen = [int(each[0]) for each in after if len(each)]
    return {"median_delay": float(np.median(seen)) if seen else None, "detected": len(seen) / len(traces)}
