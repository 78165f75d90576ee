"""How fast the built-in environments draw and move, on one core.

Usage: taskset -c 1 python benchmarks/arms/envs.py     (prints frames/s and steps/s; best of several rounds)
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from forethought.core.rng import generator
from forethought.envs import SYSTEMS, make_system
from forethought.envs.behaviour import make_policy, rollout

BATCH = 256


def best_rate(work: Callable[[], object], count: int, num_rounds: int) -> float:
    """Return the highest number of things a second over rounds of `work`, which does `count` of them."""
    work()
    rates = []
    for _ in range(num_rounds):
        began = time.perf_counter()
        work()
        rates.append(count / (time.perf_counter() - began))
    return max(rates)


def render_rates(sizes: tuple[int, ...] = (64, 96, 224), num_rounds: int = 15) -> dict[str, float]:
    """Return frames/s by environment and size: default factors, and every factor different in every frame."""
    figures = {}
    for name in SYSTEMS:
        system, rng = make_system(name), generator(0, "benchmark.envs")
        for label, factors in (("", {}), ("_varied", system.vary(["all"], rng, BATCH))):
            states = system.draw_states(rng, system.complete(factors, BATCH))
            for size in sizes:
                rate = best_rate(lambda: system.render_batch(states, size, factors), BATCH, num_rounds)  # noqa: B023
                figures[f"{name}_{size}px{label}_frames_per_s"] = rate
    return figures


def step_rates(num_rounds: int = 5) -> dict[str, float]:
    """Return steps/s of a batch by environment: physics alone, and with the policy that makes the data."""
    figures = {}
    for name in SYSTEMS:
        system, rng = make_system(name), generator(0, "benchmark.envs")
        factors = system.complete(None, BATCH)
        simulation = system.begin(system.draw_states(rng, factors), factors)
        actions = rng.uniform(-1, 1, (BATCH, system.action_dim))
        figures[f"{name}_steps_per_s"] = best_rate(lambda: simulation.step(actions), BATCH, num_rounds)  # noqa: B023
        work = lambda: list(rollout(system, make_policy(name, "data"), 32, 50, batch=32))  # noqa: B023, E731
        figures[f"{name}_collect_steps_per_s"] = best_rate(work, 32 * 50, num_rounds)
    return figures


def success_rates(num_episodes: int = 64, seeds: tuple[int, ...] = (4, 11, 12)) -> dict[str, float]:
    """Return the share of episodes in which each policy reaches its goal, over all seeds."""
    figures = {}
    for name, policies in (
        ("two-rooms", ("expert", "noisy", "random", "still")),
        ("push-t", ("expert", "noisy", "weak")),
    ):
        for policy in policies:
            won = [
                episodes.success_ET.any(axis=1)
                for seed in seeds
                for episodes in rollout(
                    make_system(name), make_policy(name, policy), num_episodes, seed=seed, stop_at_goal=True
                )
            ]
            figures[f"{name}_{policy}_success"] = float(np.concatenate(won).mean())
    return figures


def main() -> None:
    """Print every figure."""
    for key, value in {**render_rates(), **step_rates(), **success_rates()}.items():
        print(f"{key:45s} {value:12,.3f}" if value <= 1.0 else f"{key:45s} {value:12,.0f}")


if __name__ == "__main__":
    main()
