"""Planning speed of D-MPC: plans a second of the CPU preset, and against joint planning and the paper's sampler.

    python benchmarks/control.py            one core; writes results/control.json
    python benchmarks/control.py --quick    the same arms, fewer plans; writes nothing

A plan is N = 64 candidates of F = 16 actions for a body of Walker2d's size (17 numbers an observation, 6 an action),
scored by the value that the preset `cpu` trains, in fp32 with 2 + 2 steps. joint is a state-action diffuser of the same
backbone in 20 ancestral steps, as CleanDiffuser and Diffuser plan; paper_sampler the same two networks in the paper's
32 + 10 steps; unfolded the same plan on networks as they are trained; bfloat16 the same plan in that type. Weights are
random, which costs the same time as trained ones. Arms take turns, so that ratios compare the same moments of the
machine; medians with 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

from arms.control import ARMS, TABLE, Arm, planner_of, time_arms
from forethought.stats import median_interval, paired_ratio
from harness import run_benchmark


def measure(quick: bool) -> dict[str, object]:
    """Plans a second of the CPU preset, and how many times faster it is than joint planning and the paper's sampler."""
    rounds = 12 if quick else 80
    seconds = time_arms({name: planner_of(arm) for name, arm in ARMS.items()}, rounds)
    figures: dict[str, object] = {}
    own = median_interval([1.0 / value for value in seconds["cpu"]])
    figures["plan_hz"] = own.estimate
    figures["plan_hz_interval"] = [own.low, own.high]
    arms = ("joint", "paper_sampler", "unfolded")
    for name, arm in ((f"over_{arm}", arm) for arm in arms):
        ratio = paired_ratio(seconds[arm], seconds["cpu"])
        figures[name] = ratio.estimate
        figures[f"{name}_interval"] = [ratio.low, ratio.high]
    narrow = median_interval([1.0 / value for value in seconds["bfloat16"]])
    figures["plan_hz_bfloat16"] = narrow.estimate
    figures["plan_hz_bfloat16_interval"] = [narrow.low, narrow.high]
    table = [arm for arm in TABLE if not quick or (arm.sampler, arm.steps) == ("ddim", (2, 2))]
    figures["latency_ms"] = latency(4 if quick else 20, table)
    figures["rounds"] = rounds
    return figures


def latency(rounds: int, table: Sequence[Arm]) -> dict[str, float]:
    """Median milliseconds a plan over presets, samplers and steps."""
    seconds = time_arms({arm.name: planner_of(arm) for arm in table}, rounds)
    return {name: round(1e3 * median_interval(values).estimate, 3) for name, values in seconds.items()}


if __name__ == "__main__":
    run_benchmark("control", measure)
