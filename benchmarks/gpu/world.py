"""World models on an accelerator: training frames a second, memory, plan time, and a real run on two rooms.

    python benchmarks/gpu/world.py                          the published shape, 224 px, 18 M, bf16
    python benchmarks/gpu/world.py --seconds 1200           train as far as 20 minutes allow, then evaluate
    python benchmarks/gpu/world.py --device cpu --tiny      all of it on a tiny model, to see that it runs

First training speed and peak memory at batch 128 and history 3 (512 frames a step). Then SIGReg forward and backward at
T4 B128 D192 M1024, and the time of one full plan (300 candidates, 5 blocks, 30 iterations). Then two rooms at the
model's resolution: collect, train until the time is spent, recalibrate, and the success of planning on held-out pairs
with no-op and random beside it (Wilson 95 % intervals).

What has been seen to work: all of it with `--device cpu --tiny`. What has not been run on a GPU yet: all of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEEDED = ("torch", "numpy", "scipy", "pydantic", "safetensors", "gymnasium")
ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 400.0


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/world.py", description="World models on accelerators.")
    parser.add_argument("--json", action="store_true", help="print the figures as one last line on standard output")
    parser.add_argument("--out", type=Path, help="write the figures here (else to gpu-world.json in $OUT, if set)")
    parser.add_argument("--device", help="default: the accelerator that torch finds")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that everything runs")
    parser.add_argument("--seconds", type=float, default=DEADLINE_SECONDS, help="time in all (default 400)")
    return parser.parse_args()


def main() -> None:
    """Time, train, evaluate, and write it all down."""
    given = arguments()
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        sys.exit(f"missing: {', '.join(absent)}; install with: python -m pip install {' '.join(absent)}")
    sys.path.insert(0, str(ROOT / "src"))
    began = time.monotonic()
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    if given.device is None and found is None:
        sys.exit("no accelerator is at hand; give --device cpu --tiny to see that everything runs")
    device = torch.device(given.device or str(found))
    figures = measure(device, given.tiny, began + given.seconds)
    figures["seconds"] = round(time.monotonic() - began, 1)
    out = given.out or (Path(os.environ["OUT"]) / "gpu-world.json" if os.environ.get("OUT") else None)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1) + "\n")
    for key, value in figures.items():
        print(f"{key}: {value}", file=sys.stderr if given.json else sys.stdout)
    if given.json:
        print(json.dumps(figures))


def measure(device: Any, tiny: bool, deadline: float) -> dict[str, Any]:
    """Return every figure."""
    import torch

    from forethought.world import preset

    shape = preset("tiny") if tiny else preset("lewm")
    batch = 16 if tiny else 128
    figures: dict[str, Any] = {"device": _name(device), "torch": torch.__version__, "image_size": shape.image_size}
    seconds, figures["training"] = training_speed(shape, batch, device, 4 if tiny else 20)
    figures["sigreg_ms"] = sigreg_time(device, 2 if tiny else 30)
    figures["plan_ms"] = plan_time(shape, device, 1 if tiny else 5, 2 if tiny else 30)
    # Half of what is left goes into training: the rest is collecting, evaluation and a margin.
    room = max(0.0, deadline - time.monotonic()) / 2
    figures |= run_rooms(shape, batch, device, max(8, min(20_000, int(room / seconds))) if not tiny else 8, tiny)
    return figures


def training_speed(shape: Any, batch: int, device: Any, repeats: int) -> tuple[float, dict[str, Any]]:
    """Return seconds a step of bf16 training on random frames, and speed and memory in words of the benchmark."""
    import torch

    from forethought.core.rng import torch_generator
    from forethought.train import build_optimisers
    from forethought.world import WorldFitConfig, WorldModel
    from forethought.world.data import WorldBatch
    from forethought.world.objective import world_loss

    settings = WorldFitConfig(model=shape, batch_size=batch)
    model = WorldModel(shape).to(device).train()
    optimisers, loss = build_optimisers(model, settings.optimiser), world_loss(settings)
    draws, side = torch_generator(0, "benchmark"), shape.image_size
    frames = torch.randint(0, 256, (batch, shape.num_frames, side, side, 3), dtype=torch.uint8, generator=draws)
    blocks = torch.randn(batch, shape.history, shape.block_dim, generator=draws)
    data = frames.to(device), blocks.to(device)

    def step(number: int) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            value, _ = loss(model, WorldBatch(*data, step=number, seed=0))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimisers.step()
        optimisers.zero_grad()

    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats()
    seconds = _median([_timed(lambda number=number: step(number), device) for number in range(repeats + 2)][2:])
    memory = torch.accelerator.max_memory_allocated() / 2**30 if device.type != "cpu" else None
    count = batch * shape.num_frames
    return seconds, {
        "parameters": model.num_parameters(),
        "frames_per_second": count / seconds,
        "milliseconds_a_step": 1000 * seconds,
        "peak_memory_gib": memory,
    }


def sigreg_time(device: Any, repeats: int) -> float:
    """Return milliseconds of SIGReg forward and backward at the published size."""
    import torch

    from forethought.core.rng import torch_generator
    from forethought.world import sigreg

    z = torch.randn(4, 128, 192, generator=torch_generator(0, "benchmark")).to(device).requires_grad_()

    def once() -> None:
        sigreg(z, 1024, 17, torch_generator(0, "directions", device=str(device))).backward()

    return 1000 * _median([_timed(once, device) for _ in range(repeats + 1)][1:])


def plan_time(shape: Any, device: Any, repeats: int, iterations: int) -> float:
    """Return milliseconds of one full plan from a latent to a latent."""
    import torch

    from forethought.core.rng import torch_generator
    from forethought.plan import CEM, Problem, goal_distance, over_horizon
    from forethought.world import WorldModel
    from forethought.world.planning import LatentDynamics
    from forethought.world.planning.dynamics import LatentStart

    model = WorldModel(shape).to(device).eval().requires_grad_(False)
    size = shape.latent_size
    start = LatentStart(torch.zeros(1, 1, size, device=device), torch.zeros(1, 0, shape.block_dim, device=device))
    low, high = model.block_bounds()
    problem = Problem(
        LatentDynamics(model),
        over_horizon(goal_distance(torch.ones(1, size, device=device))),
        start,
        horizon=5,
        action_dim=shape.block_dim,
        low=low,
        high=high,
        device=device,
    )
    planner = CEM(num_candidates=300, num_elites=30, num_iterations=iterations)

    @torch.no_grad()
    def once() -> None:
        planner(problem, torch_generator(0, "plan"))

    return 1000 * _median([_timed(once, device) for _ in range(repeats + 1)][1:])


def run_rooms(shape: Any, batch: int, device: Any, steps: int, tiny: bool) -> dict[str, Any]:
    """Collect two rooms, train for `steps`, and return success on held-out pairs beside the baselines."""
    import numpy as np

    from forethought.envs import make_system
    from forethought.train import LoopConfig, ScheduleConfig
    from forethought.world import WorldFitConfig, fit_world, load_world_model, split_episodes
    from forethought.world.collecting import CollectConfig, collect_episodes
    from forethought.world.planning import (
        EvaluationConfig,
        GoalConfig,
        GoalPolicy,
        NoOpPolicy,
        RandomPolicy,
        SystemArena,
        evaluate_policies,
    )

    count = 20 if tiny else 100
    episodes = collect_episodes(CollectConfig(episodes=count, steps=60 if tiny else 100, image_size=shape.image_size))
    base = WorldFitConfig(model=shape, batch_size=batch)
    loop = LoopConfig(
        steps=steps,
        precision="bf16",
        evaluate_every=steps,
        checkpoint_every=0,
        schedule=ScheduleConfig(warmup=0.05),
    )
    settings = dataclasses.replace(base, loop=loop, device=str(device), calibration_windows=256)
    with tempfile.TemporaryDirectory() as folder:
        trained = fit_world(settings, episodes, Path(folder) / "run")
        model = load_world_model(Path(folder) / "run", device=device)
    system = make_system("two-rooms")
    low, high = np.asarray(system.action_low), np.asarray(system.action_high)
    policies = {
        "plan": GoalPolicy(model, GoalConfig(execute=3, over="min")),
        "no-op": NoOpPolicy(np.zeros(2)),
        "random": RandomPolicy(low, high),
    }
    chosen = EvaluationConfig(num_pairs=3 if tiny else 30, num_seeds=3, budget=10 if tiny else 50)
    held_out = split_episodes(episodes, settings)["held_out"]
    rates = evaluate_policies(policies, held_out, SystemArena(system, shape.image_size), chosen)
    names = ("steps", "frames_seen", "validation_loss", "copy_ratio", "spread", "effective_rank", "collapsed")
    return {"trained": {name: trained[name] for name in names}, "two_rooms": rates}


def _timed(once: Callable[[], object], device: Any) -> float:
    import torch

    _wait(torch, device)
    started = time.perf_counter()
    once()
    _wait(torch, device)
    return time.perf_counter() - started


def _wait(torch: Any, device: Any) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _name(device: Any) -> str:
    import torch

    return torch.get_device_module(device).get_device_name(device) if device.type != "cpu" else "cpu"


if __name__ == "__main__":
    main()
