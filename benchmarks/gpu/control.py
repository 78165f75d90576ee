"""Planning of D-MPC on an accelerator at the paper's size: plans a second with and without CUDA graphs, and training.

    python benchmarks/gpu/control.py                       one GPU
    python benchmarks/gpu/control.py --device cpu --tiny   all of it on tiny models, to see that it runs

A plan is N = 64 candidates of F = 32 actions of a body of Walker2d's size: 32 DDPM steps of the proposal, 10 DDIM steps
of the dynamics (5 blocks of width 256 each), scored by the learned value. The graphed arm captures sampling, prediction
and scoring as one graph, with all noise as an input; its scores are compared with the eager ones first. Both in fp32
and in bfloat16, whose scores are compared with those of fp32. Training is windows a second of the proposal's loss
forward and backward at batch 256.

What has been seen to work: `--device cpu --tiny`, and that a whole plan copies nothing from the host and reads nothing
back (tests/control/test_gpu_script.py), which is what a graph needs. What has not been run on a GPU yet: all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/control.py", description="Planning on accelerators.")
    parser.add_argument("--device", default=None, help="default: the accelerator that torch finds")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see that everything runs")
    parser.add_argument("--quick", action="store_true", help="fewer plans")
    parser.add_argument("--json", action="store_true", help="print the figures as one last line on standard output")
    parser.add_argument("--out", type=Path, help="write the figures here (else to gpu-control.json in $OUT, if set)")
    return parser.parse_args()


def build(device: Any, tiny: bool, precision: str = "float32") -> tuple[Callable[..., Any], dict[str, Any], Any]:
    """Return plan(noise, between) -> (actions, scores), its inputs, and the proposal's module for training."""
    import torch

    from arms.control import ACTION, OBSERVATION, SAMPLES, body
    from forethought.control.models import ActionProposal, DiffusionDynamics, ModelConfig, NetworkConfig
    from forethought.control.models.value import ReturnValue
    from forethought.control.situation import Situation
    from forethought.diffusion import SamplerConfig, make_grid, sample
    from forethought.plan import Candidates

    horizon, first, second, preset = (8, 4, 2, "tiny") if tiny else (32, 32, 10, "paper")
    network = NetworkConfig(preset=preset)
    deep = NetworkConfig(preset=preset, num_layers=None if tiny else 10)
    shape = body()
    noisy = ModelConfig(horizon=horizon, network=network, sampler=SamplerConfig(name="ddpm", steps=first, clip=8.0))
    plain = ModelConfig(horizon=horizon, network=network, sampler=SamplerConfig(name="ddim", steps=second, clip=8.0))
    dtype = getattr(torch, precision)
    proposal, dynamics, value = (
        model.place(device).eval().with_precision(dtype)
        for model in (
            ActionProposal(shape, noisy),
            DiffusionDynamics(shape, plain),
            ReturnValue(shape, ModelConfig(horizon=horizon, network=deep)),
        )
    )
    start = Situation.first(torch.zeros(1, OBSERVATION), ACTION, 0).to(device)
    context = proposal.context(start)
    grid = make_grid(noisy.process, noisy.sampler)

    @torch.no_grad()
    def plan(noise: Any, between: Any) -> tuple[Any, Any]:
        actions = sample(
            proposal.inference().bind(context),
            noise,
            process=noisy.process,
            sampler=noisy.sampler,
            between=between,
            grid=grid,
        ).clamp(-1, 1)[None]
        states = dynamics(start, actions)  # pyright: ignore
        return actions, value(Candidates(start, actions, states))  # pyright: ignore

    size = (SAMPLES, horizon, ACTION)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "noise": torch.randn(size, generator=generator).to(device),
        "between": torch.randn((first, *size), generator=generator).to(device),
    }
    return plan, inputs, proposal


def graphed(plan: Callable[..., Any], inputs: dict[str, Any]) -> Callable[[], Any]:
    """Capture a plan as one CUDA graph over its input buffers and return its replay."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            plan(**inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = plan(**inputs)

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def clocked(call: Callable[[], Any], rounds: int, device: Any) -> list[float]:
    """Return the seconds of each call, the device's work included."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    seconds: list[float] = []
    for index in range(rounds + 3):
        wait()
        began = time.perf_counter()
        call()
        wait()
        if index >= 3:
            seconds.append(time.perf_counter() - began)
    return seconds


def named(device: Any) -> str:
    """Return the name of what is measured."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def difference(scores: Any, wanted: Any) -> float:
    """Return the largest difference of two score tensors, relative to the largest score."""
    return float((scores - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))


def timed(plan: Callable[..., Any], inputs: dict[str, Any], scores: Any, rounds: int, device: Any) -> dict[str, Any]:
    """Return plans a second, eager and, where there are CUDA graphs, replayed, with the graph's error."""
    from forethought.stats import median_interval

    def rate(call: Callable[[], Any]) -> dict[str, float]:
        interval = median_interval([1.0 / value for value in clocked(call, rounds, device)])
        return {"median": interval.estimate, "low": interval.low, "high": interval.high}

    figures: dict[str, Any] = {"eager_hz": rate(lambda: plan(**inputs))}
    if device.type == "cuda":
        replay = graphed(plan, inputs)
        figures["graph_difference"] = difference(replay()[1], scores)
        figures["graph_hz"] = rate(replay)
    return figures


def training(proposal: Any, device: Any, rounds: int, batch: int = 256) -> float:
    """Return windows a second of the proposal's loss, forward and backward."""
    import torch

    size = (batch, proposal.horizon, proposal.body.act_dim)
    x0 = torch.zeros(size, device=device)
    context = torch.zeros((batch, *proposal.context_shape), device=device)
    times = torch.linspace(0.01, 1.0, batch, device=device)

    def step() -> None:
        proposal.network(x0, times, context).square().mean().backward()

    seconds = sorted(clocked(step, rounds, device))
    return batch / seconds[len(seconds) // 2]


def main() -> None:
    """Check, time, and write it down."""
    given = arguments()
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    if given.device is None and found is None:
        sys.exit("no accelerator is at hand; give --device cpu --tiny to see that everything runs")
    device = torch.device(given.device or str(found))
    rounds = 5 if given.quick or given.tiny else 50
    figures: dict[str, Any] = {"device": str(device), "device_name": named(device)}
    exact: Any = None
    for precision in ("float32", "bfloat16"):
        plan, inputs, proposal = build(device, given.tiny, precision)
        scores = plan(**inputs)[1].clone()
        exact = scores if exact is None else exact
        figures[precision] = timed(plan, inputs, scores, rounds, device)
        figures[precision]["difference_from_fp32"] = difference(scores, exact)
    proposal = build(device, given.tiny)[2]
    figures["training_windows_per_second"] = training(proposal, device, rounds)
    write(figures, given)


def write(figures: dict[str, Any], given: argparse.Namespace) -> None:
    """Print the figures and put them where they are wanted."""
    out = given.out or (Path(os.environ["OUT"]) / "gpu-control.json" if os.environ.get("OUT") else None)
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        print(f"{name:30} {value}", file=sys.stderr if given.json else sys.stdout)
    if given.json:
        print(json.dumps(figures))
    bars = {"float32": 1e-3, "bfloat16": 5e-2}
    if any(figures[name].get("graph_difference", 0.0) > bar for name, bar in bars.items()):
        sys.exit("the graph's scores are not the eager ones: see graph_difference")


if __name__ == "__main__":
    main()
