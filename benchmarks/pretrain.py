"""Members as one batched model against K single models in a plain torch loop, on one machine, in turns.

    python benchmarks/pretrain.py [--quick] [--json]

For 0.2, 0.8 and 3 M parameters: both arms first take the same steps from the same weights on the same tokens, and every
member's loss must be the plain loop's within 1e-4, or the run fails. Then the tool chooses (a batch, or members one
after another) by its own short measurement, as it does before a run of members; and only then steps are timed, arms in
turns. Ratios are the plain loop's seconds over the batch's (`batched_*`) and over those of what the tool had chosen
(`taken_*`): medians of paired ratios with 95 % intervals. `worst_taken` is the least of these; the bar is 0.97.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from arms.pretrain import separate_steps
from forethought.app.recipes.pretrain import members, shape
from forethought.nn import TransformerConfig, num_parameters
from forethought.pretrain.members import MembersConfig
from forethought.pretrain.members.speed import Steps, measure_speeds
from forethought.stats import paired_ratio
from harness import run_benchmark

VOCAB = 1024
TOLERANCE = 1e-4
# width, layers, members, batch, context
SHAPES = {
    "0.2m_k4": (64, 4, 4, 8, 64),
    "0.2m_k8": (64, 4, 8, 2, 64),
    "0.8m_k4": (128, 4, 4, 8, 64),
    "0.8m_k8": (128, 4, 8, 2, 64),
    "3m_k4": (256, 4, 4, 8, 128),
}
FULL_ROUNDS, QUICK_ROUNDS = 40, 4
FULL_STEPS, QUICK_STEPS = 12, 3
Step = Callable[[], list[Tensor]]


def measure(quick: bool) -> dict[str, object]:
    """Check and time a step of K members batched, and of K single models by plain torch, in turns."""
    rounds, steps = (QUICK_ROUNDS, QUICK_STEPS) if quick else (FULL_ROUNDS, FULL_STEPS)
    figures: dict[str, object] = {"threads": torch.get_num_threads(), "rounds": rounds, "checked_steps": steps}
    worst, widest = float("inf"), 0.0
    for name, (width, layers, count, batch, context) in SHAPES.items():
        settings, transformer = setting(width, layers, batch, context)
        arms: dict[str, Step] = {
            "plain": separate_steps(settings, transformer, count),
            "batched": Steps(settings, transformer, count).step,
            "alone": partial(repeat, Steps(settings, transformer, 1).step, count),
        }
        gap = largest_gap(arms["plain"], arms["batched"], steps)
        arms["alone"]()  # warms up: the other arms have, while they were compared
        if gap > TOLERANCE:
            raise SystemExit(f"{name}: a batched member's loss is {gap:.2e} from its own; at most {TOLERANCE} may be")
        # The tool's own choice comes first, from timings of its own, and is not changed by what follows.
        chosen = measure_speeds(settings, transformer, (count,), rounds=2 if quick else 5).best
        times = timed(arms, rounds)
        figures[f"parameters_{name}"] = num_parameters(transformer).total
        figures[f"loss_gap_{name}"] = gap
        figures[f"chosen_{name}"] = chosen
        taken = "batched" if chosen > 1 else "alone"
        for title, arm in (("batched", "batched"), ("taken", taken)):
            gain = paired_ratio(times["plain"], times[arm])
            figures[f"{title}_{name}"] = gain.estimate
            figures[f"{title}_{name}_low"], figures[f"{title}_{name}_high"] = gain.low, gain.high
        worst, widest = min(worst, float(gain.estimate)), max(widest, gap)
    return figures | {"worst_taken": worst, "largest_loss_gap": widest}


def setting(width: int, layers: int, batch: int, context: int) -> tuple[MembersConfig, TransformerConfig]:
    """Return the members' recipe with a shape, and the full shape."""
    recipe = members()
    optimiser = replace(recipe.fit.optimiser, tau=None)
    fit = replace(recipe.fit, model=shape(width, layers), batch_size=batch, context=context, optimiser=optimiser)
    return replace(recipe, fit=fit), fit.model.transformer(VOCAB, fit.max_positions)


def largest_gap(plain: Step, batched: Step, steps: int) -> float:
    """Return the largest difference of any member's losses over so many training steps of both arms."""
    gaps = [torch.stack(plain()) - torch.stack(batched()) for _ in range(steps)]
    return float(torch.stack(gaps).abs().max())


def timed(arms: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each arm's step, the arms in turns, each round beginning with another one."""
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    names = list(arms)
    for number in range(rounds):
        first = number % len(names)
        for arm in names[first:] + names[:first]:
            started = time.perf_counter()
            arms[arm]()
            times[arm].append(time.perf_counter() - started)
    return times


def repeat(step: Step, count: int) -> list[Tensor]:
    """Take a step so many times: members one after another."""
    return [loss for _ in range(count) for loss in step()]


if __name__ == "__main__":
    run_benchmark("pretrain", measure)
