"""Members as one batched model against members one after another: the same members, the same loop, one process.

Three arms take a step of the same K members in turns, so that a drift of the machine's speed hits all alike: plain
torch loops over K single models, the library's batch of K, and its members alone. The ratios are those of the plain
loop's seconds over the batch's, and over those of what the tool takes: the batch where it is clearly faster than
members alone. That the members are the same ones is held by tests/pretrain/test_members.py.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from arms.pretrain import separate_steps
from forethought.app.recipes.pretrain import members, shape
from forethought.pretrain.members.speed import WORTH, Steps
from forethought.stats import paired_ratio
from harness import run_benchmark

VOCAB = 1024
# width, layers, members, batch, context
SHAPES = {
    "0.2m_k4": (64, 4, 4, 8, 64),
    "0.2m_k8": (64, 4, 8, 2, 64),
    "0.8m_k4": (128, 4, 4, 8, 64),
    "0.8m_k8": (128, 4, 8, 2, 64),
    "3m_k4": (256, 4, 4, 8, 128),
}
FULL_ROUNDS, QUICK_ROUNDS = 40, 7
WARM_UP = 2


def measure(quick: bool) -> dict[str, object]:
    """Time a step of K members batched, and of K single models by plain torch, in turns."""
    rounds = QUICK_ROUNDS if quick else FULL_ROUNDS
    figures: dict[str, object] = {"threads": torch.get_num_threads(), "rounds": rounds}
    worst = float("inf")
    for name, (width, layers, count, batch, context) in SHAPES.items():
        settings = members()
        fit = replace(settings.fit, model=shape(width, layers), batch_size=batch, context=context)
        settings = replace(settings, fit=fit)
        transformer = fit.model.transformer(VOCAB, fit.max_positions)
        arms = {
            "plain": separate_steps(settings, transformer, count),
            "batched": Steps(settings, transformer, count).step,
            "alone": partial(repeat, Steps(settings, transformer, 1).step, count),
        }
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for number in range(rounds + WARM_UP):
            for arm, step in arms.items():
                started = time.perf_counter()
                step()
                if number >= WARM_UP:
                    times[arm].append(time.perf_counter() - started)
        # The tool's own choice: a batch where it is clearly faster than members alone, by the same medians.
        clearly = statistics.median(times["alone"]) >= WORTH * statistics.median(times["batched"])
        for title, arm in (("batched", "batched"), ("taken", "batched" if clearly else "alone")):
            gain = paired_ratio(times["plain"], times[arm])
            figures[f"{title}_{name}"] = gain.estimate
            figures[f"{title}_{name}_low"], figures[f"{title}_{name}_high"] = gain.low, gain.high
        worst = min(worst, float(gain.estimate))
    figures["worst_taken"] = worst
    return figures


def repeat(step: Callable[[], None], count: int) -> None:
    """Take a step so many times: members one after another."""
    for _ in range(count):
        step()


if __name__ == "__main__":
    run_benchmark("pretrain", measure)
