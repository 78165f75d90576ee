"""World models: training against a plain rendering of the same model, SIGReg, planning, and planning over patches.

All arms run on one thread in one process, a few steps or plans of each in turn, so that a drift of the machine's speed
hits all alike. The plain arm is what a competent user of PyTorch writes from the paper, over the same modules: frames
to NCHW floats with a mean and a standard deviation, SIGReg a knot at a time through autograd, AdamW, clipping. Two more
stand beside it: `tuned` keeps the frames channels last, and `published` has SIGReg as it was published, one tensor of
samples x directions x knots.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from arms.envs import render_rates
from arms.world import broadcast_sigreg, looped_sigreg, plain_steps, rolled_patches
from forethought.core.rng import torch_generator
from forethought.core.run import Run
from forethought.plan import CEM, Problem, goal_distance, over_horizon
from forethought.stats import median_interval, paired_ratio
from forethought.train import LoopConfig, Parallel, build_optimisers, train
from forethought.world import WorldFitConfig, WorldModel, preset, sigreg
from forethought.world.collecting import CollectConfig, collect_episodes
from forethought.world.data import Windows, action_statistics, set_statistics
from forethought.world.objective import world_loss
from forethought.world.planning import LatentDynamics
from forethought.world.planning.dynamics import LatentStart
from harness import run_benchmark

WARM_UP, STEPS_A_ROUND = 2, 2
TOKENS = 256
CANDIDATES, HORIZON, ITERATIONS = 300, 5, 10


def measure(quick: bool) -> dict[str, object]:
    """Time training, SIGReg and planning, each beside its contestant, and the drawing of the environments."""
    torch.set_num_threads(1)
    figures: dict[str, object] = {"threads": torch.get_num_threads()}
    figures |= train_over_plain(5 if quick else 40)
    figures |= sigreg_time(5 if quick else 40)
    figures |= plan_time(1 if quick else 8)
    figures |= render_rates((64,), num_rounds=3 if quick else 15)
    return figures


def train_over_plain(rounds: int) -> dict[str, object]:
    """Return training frames a second of preset small, over those of the plain arms."""
    steps = (rounds + WARM_UP) * STEPS_A_ROUND
    settings = WorldFitConfig(loop=LoopConfig(steps=steps + 1, evaluate_every=steps + 1, checkpoint_every=0))
    episodes = collect_episodes(CollectConfig(episodes=32))
    seconds: dict[str, list[float]] = {"library": [], "plain": [], "tuned": [], "published": []}
    with tempfile.TemporaryDirectory() as folder:
        model = WorldModel(settings.model)
        set_statistics(model, action_statistics(episodes))
        windows = Windows(episodes, model, batch_size=settings.batch_size, seed=0)
        with Run.open(Path(folder) / "run", config=settings, recipe="benchmark") as run:
            arms = {
                "library": train(
                    model,
                    loss=world_loss(settings),
                    batches=windows.batch,
                    optimisers=build_optimisers(model, settings.optimiser),
                    run=run,
                    settings=settings.loop,
                    seed=0,
                    parallel=Parallel(torch.device("cpu")),
                ),
                "plain": plain_steps(settings, episodes, steps, looped_sigreg, channels_last=False),
                "tuned": plain_steps(settings, episodes, steps, looped_sigreg, channels_last=True),
                "published": plain_steps(settings, episodes, steps, broadcast_sigreg, channels_last=False),
            }
            order = list(arms)
            for number in range(rounds + WARM_UP):
                for arm in order[number % 4 :] + order[: number % 4]:
                    started = time.perf_counter()
                    for _ in range(STEPS_A_ROUND):
                        next(arms[arm])
                    if number >= WARM_UP:
                        seconds[arm].append((time.perf_counter() - started) / STEPS_A_ROUND)
    frames = settings.batch_size * settings.model.num_frames
    figures: dict[str, object] = {
        "train_frames_per_second": frames / median_interval(seconds["library"]).estimate,
    }
    for arm in ("plain", "tuned", "published"):
        ratio = paired_ratio(seconds[arm], seconds["library"])
        figures |= {
            f"train_over_{arm}": ratio.estimate,
            f"train_over_{arm}_low": ratio.low,
            f"train_over_{arm}_high": ratio.high,
        }
    return figures


def sigreg_time(repeats: int) -> dict[str, object]:
    """Return milliseconds of SIGReg forward and backward at T4 B128 D192 M1024."""
    z = torch.randn(4, 128, 192, generator=torch_generator(0, "benchmark")).requires_grad_()

    def once() -> None:
        sigreg(z, 1024, 17, torch_generator(0, "directions")).backward()

    milliseconds = [1000 * value for value in _times(once, repeats)]
    found = median_interval(milliseconds)
    return {"sigreg_ms": found.estimate, "sigreg_ms_low": found.low, "sigreg_ms_high": found.high}


def plan_time(repeats: int) -> dict[str, object]:
    """Return milliseconds of one plan, and how many times as long it takes over 256 patch tokens a frame."""
    model = WorldModel(preset("small")).eval().requires_grad_(False)
    draws = torch_generator(0, "benchmark")
    start = LatentStart(torch.randn(1, 1, 192, generator=draws), torch.zeros(1, 0, model.config.block_dim))
    goal = torch.randn(1, 192, generator=draws)
    low, high = model.block_bounds()

    def problem(dynamics: Callable[..., Tensor]) -> Problem:
        objective = over_horizon(goal_distance(goal))
        return Problem(dynamics, objective, start, HORIZON, model.config.block_dim, low=low, high=high)

    latent, tokens = LatentDynamics(model), rolled_patches(model, TOKENS)
    planner = CEM(num_candidates=CANDIDATES, num_elites=30, num_iterations=ITERATIONS)
    # One iteration with few candidates stands for the token arm: its cost is linear in both, and minutes in full.
    small = CEM(num_candidates=8, num_elites=2, num_iterations=1)
    scale = CANDIDATES / 8 * ITERATIONS
    plans, over_tokens = [], []
    with torch.no_grad():
        for _ in range(repeats + 1):
            plans += _times(lambda: planner(problem(latent), torch_generator(0, "plan")), 1)
            over_tokens += [scale * s for s in _times(lambda: small(problem(tokens), torch_generator(0, "plan")), 1)]
    ratio = paired_ratio(over_tokens[1:], plans[1:])
    found = median_interval([1000 * value for value in plans[1:]])
    return {
        "plan_ms": found.estimate,
        "plan_ms_low": found.low,
        "plan_ms_high": found.high,
        "tokens_over_latent": ratio.estimate,
        "tokens_over_latent_low": ratio.low,
        "tokens_over_latent_high": ratio.high,
        "tokens_over_latent_candidates_timed": 8,
    }


def _times(once: Callable[[], object], repeats: int) -> list[float]:
    values: list[float] = []
    for number in range(repeats + (repeats > 1)):
        started = time.perf_counter()
        once()
        if number or repeats == 1:
            values.append(time.perf_counter() - started)
    return values


if __name__ == "__main__":
    run_benchmark("world", measure)
