"""Samplers against closed forms: laws, maps, orders of convergence, equivalences."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.diffusion.capture import NothingFromTheHost
from tests.diffusion.mixture import Mixture, exact, gaussian_flow

from forethought.core.errors import InputError
from forethought.core.rng import torch_generator
from forethought.diffusion import (
    Grid,
    Inpaint,
    ProcessConfig,
    SamplerConfig,
    ScheduleConfig,
    draw_noise,
    levels,
    make_grid,
    sample,
    to_eps,
    to_x0,
)
from forethought.nn.denoisers import build_denoiser, denoiser_preset

F64 = torch.float64
TWO = Mixture(
    torch.tensor([0.3, 0.7], dtype=F64),
    torch.tensor([[-1.5, 0.5], [1.0, -1.0]], dtype=F64),
    torch.tensor([0.3, 0.5], dtype=F64),
)
ONE = Mixture(torch.ones(1, dtype=F64), torch.tensor([[0.7, -0.4]], dtype=F64), torch.tensor([0.6], dtype=F64))


def run(mixture: Mixture, process: ProcessConfig, sampler: SamplerConfig, count: int, seed: int = 0) -> torch.Tensor:
    noise, between = draw_noise((count, 2), sampler, torch_generator(seed, "test"), F64)
    return sample(exact(mixture, process), noise, process=process, sampler=sampler, between=between)


LAWS: list[tuple[str, dict[str, Any]]] = [
    ("cosine", {"name": "ddim", "steps": 60}),
    ("cosine", {"name": "ddim", "steps": 120, "eta": 0.5}),
    ("cosine", {"name": "ddpm", "steps": 300}),
    ("linear", {"name": "ddpm", "steps": 300}),
    ("cosine", {"name": "dpm2m", "steps": 30}),
    ("sigmoid", {"name": "dpm2m", "steps": 30, "spacing": "log_snr"}),
    ("cosine", {"name": "heun", "steps": 50}),
    ("flow", {"name": "euler", "steps": 80}),
    ("flow", {"name": "heun", "steps": 30}),
    ("flow", {"name": "dpm2m", "steps": 40}),
    ("flow", {"name": "ddpm", "steps": 300}),
]


@pytest.mark.parametrize(("schedule", "settings"), LAWS)
def test_the_sampled_law_is_the_mixture(schedule: str, settings: dict[str, Any]) -> None:
    count = 6000
    process = ProcessConfig(schedule=ScheduleConfig(name=schedule))
    samples = run(TWO, process, SamplerConfig(**settings), count)
    mode = TWO.shares(samples, 1.0, 1e-9).argmax(1)
    for index in range(2):
        inside = samples[mode == index]
        weight, std = float(TWO.weights[index]), float(TWO.stds[index])
        # Four standard errors, and what the discrete steps and the last 1 % of signal at time 1 leave.
        assert len(inside) / count == pytest.approx(weight, abs=4 * math.sqrt(weight * (1 - weight) / count) + 0.006)
        assert (inside.mean(0) - TWO.means[index]).abs().max() < 4 * std / math.sqrt(len(inside)) + 0.02
        assert inside.std(0).tolist() == pytest.approx([std, std], rel=0.05)


def error(schedule: str, name: str, steps: int) -> float:
    process = ProcessConfig(schedule=ScheduleConfig(name=schedule))
    sampler = SamplerConfig(name=name, steps=steps)  # pyright: ignore[reportArgumentType]
    # To time 0.05, away from the data, where the map is smooth; the start avoids the clamp of the least signal.
    share = np.linspace(0.95, 0.05, steps + 1)
    alphas, sigmas = levels(process.schedule, share)
    grid = Grid(tuple(share.tolist()), tuple(alphas.tolist()), tuple(sigmas.tolist()))
    noise, _ = draw_noise((64, 2), sampler, torch_generator(1, "test"), F64)
    reached = sample(exact(ONE, process), noise, process=process, sampler=sampler, grid=grid)
    return float((reached - gaussian_flow(ONE, noise, grid)).square().mean().sqrt())


@pytest.mark.parametrize(
    ("schedule", "name", "order"),
    [
        ("cosine", "ddim", 1),
        ("flow", "ddim", 1),
        ("cosine", "euler", 1),
        ("flow", "euler", 1),
        ("cosine", "dpm2m", 2),
        ("linear", "dpm2m", 2),
        ("flow", "dpm2m", 2),
        ("cosine", "heun", 2),
        ("flow", "heun", 2),
    ],
)
def test_the_order_of_convergence(schedule: str, name: str, order: int) -> None:
    errors = [error(schedule, name, steps) for steps in (40, 80, 160)]
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert slopes == pytest.approx([order, order], abs=0.25)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm2m", "euler", "heun", "consistency"])
@pytest.mark.parametrize("schedule", ["cosine", "flow"])
def test_every_prediction_gives_the_same_samples(name: str, schedule: str) -> None:
    results = []
    for prediction in ("x0", "eps", "v", "velocity"):
        if schedule == "flow" and prediction == "eps":
            continue
        process = ProcessConfig(schedule=ScheduleConfig(name=schedule), prediction=prediction)
        results.append(run(TWO, process, SamplerConfig(name=name, steps=7), 50))  # pyright: ignore[reportArgumentType]
    for other in results[1:]:
        assert torch.allclose(results[0], other, atol=1e-6, rtol=0)


def test_ddpm_is_the_ancestral_step_of_the_paper() -> None:
    count = 12
    process = ProcessConfig(schedule=ScheduleConfig(num_levels=count))
    sampler = SamplerConfig(name="ddpm", steps=count)
    noise, between = draw_noise((40, 2), sampler, torch_generator(2, "test"), F64)
    assert between is not None
    denoise = exact(TWO, process)
    alphas, _ = levels(process.schedule, np.arange(count + 1) / count)
    bar, x = alphas**2, noise
    for index, k in enumerate(range(count, 0, -1)):
        beta = 1 - bar[k] / bar[k - 1]
        x0 = denoise(x, torch.tensor([k / count], dtype=F64))
        mean = math.sqrt(bar[k - 1]) * beta / (1 - bar[k]) * x0
        mean = mean + math.sqrt(1 - beta) * (1 - bar[k - 1]) / (1 - bar[k]) * x
        x = mean + math.sqrt((1 - bar[k - 1]) / (1 - bar[k]) * beta) * between[index]
    assert torch.allclose(sample(denoise, noise, process=process, sampler=sampler, between=between), x, atol=1e-9)


def test_ddim_is_the_step_of_the_paper_at_any_eta() -> None:
    process = ProcessConfig()
    for eta in (0.0, 0.3, 1.0):
        sampler = SamplerConfig(steps=6, eta=eta)
        noise, between = draw_noise((40, 2), sampler, torch_generator(2, "test"), F64)
        denoise, grid, x = exact(TWO, process), make_grid(process, sampler), noise
        for index in range(6):
            bar_k, bar_j = grid.alphas[index] ** 2, grid.alphas[index + 1] ** 2
            x0 = denoise(x, torch.tensor([grid.times[index]], dtype=F64))
            eps = (x - math.sqrt(bar_k) * x0) / math.sqrt(1 - bar_k)
            sigma = eta * math.sqrt((1 - bar_j) / (1 - bar_k)) * math.sqrt(1 - bar_k / bar_j)
            x = math.sqrt(bar_j) * x0 + math.sqrt(1 - bar_j - sigma**2) * eps
            x = x if between is None else x + sigma * between[index]
        assert torch.allclose(sample(denoise, noise, process=process, sampler=sampler, between=between), x, atol=1e-9)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm2m", "euler", "heun", "consistency"])
def test_samples_depend_on_the_seed_alone_and_rows_on_themselves_alone(name: str) -> None:
    process, sampler = ProcessConfig(), SamplerConfig(name=name, steps=5)  # pyright: ignore[reportArgumentType]
    state = torch.random.get_rng_state()
    first, again, other = (run(TWO, process, sampler, 9, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    noise, between = draw_noise((9, 2), sampler, torch_generator(3, "test"), F64)
    for row in range(0, 9, 4):
        part = None if between is None else between[:, row : row + 1]
        alone = sample(exact(TWO, process), noise[row : row + 1], process=process, sampler=sampler, between=part)
        assert torch.allclose(alone[0], first[row], atol=1e-12)


def test_a_noisy_sampler_needs_its_noise() -> None:
    process, sampler = ProcessConfig(), SamplerConfig(name="ddpm", steps=5)
    noise, between = draw_noise((4, 2), sampler, torch_generator(0, "test"), F64)
    assert between is not None
    for wrong in (None, between[:3], between[:, :2]):
        with pytest.raises(InputError, match=r"give `between` of \(5, 4, 2\)"):
            sample(exact(TWO, process), noise, process=process, sampler=sampler, between=wrong)
    assert draw_noise((4, 2), SamplerConfig(), torch_generator(0, "test"))[1] is None


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm2m", "heun"])
def test_held_entries_stay_and_are_seen_at_their_level(clean: bool, name: str) -> None:
    process, sampler = ProcessConfig(), SamplerConfig(name=name, steps=6)  # pyright: ignore[reportArgumentType]
    grid = make_grid(process, sampler)
    noise, between = draw_noise((8, 2), sampler, torch_generator(0, "test"), F64)
    values = torch.tensor([[0.25, 0.0]], dtype=F64)
    mask = torch.tensor([[True, False]])
    seen: list[tuple[float, torch.Tensor]] = []

    def denoise(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        seen.append((float(times), x[:, 0].clone()))
        return exact(TWO, process)(x, times)

    inpaint = Inpaint(values, mask, clean=clean)
    samples = sample(denoise, noise, process=process, sampler=sampler, between=between, inpaint=inpaint)
    assert (samples[:, 0] == 0.25).all()
    assert samples[:, 1].std() > 0.1
    for time, column in seen:
        index = min(range(7), key=lambda i: abs(grid.times[i] - time))
        level = torch.full_like(column, 0.25)
        expected = level if clean else grid.alphas[index] * level + grid.sigmas[index] * noise[:, 0]
        assert torch.allclose(column, expected, atol=1e-12)


def test_inpainting_with_a_network_that_knows_the_condition_has_the_conditional_law() -> None:
    # x1 given x0 of a correlated pair is N(rho x0, 1 - rho^2); the network sees x0 clean and denoises x1.
    rho, known, process = 0.8, 0.9, ProcessConfig()

    def denoise(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        (alpha,), (sigma,) = (level.tolist() for level in levels(process.schedule, times.numpy()))
        mean, variance = rho * x[:, :1], 1 - rho**2
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return torch.cat((x[:, :1], mean + gain * (x[:, 1:] - alpha * mean)), 1)

    noise, _ = draw_noise((6000, 2), SamplerConfig(), torch_generator(0, "test"), F64)
    held = Inpaint(torch.tensor([[known, 0.0]], dtype=F64), torch.tensor([[True, False]]))
    samples = sample(denoise, noise, process=process, sampler=SamplerConfig(name="dpm2m", steps=30), inpaint=held)
    assert float(samples[:, 1].mean()) == pytest.approx(rho * known, abs=0.04)
    assert float(samples[:, 1].std()) == pytest.approx(math.sqrt(1 - rho**2), rel=0.04)


def test_clip_threshold_and_bounds_limit_every_estimate() -> None:
    process = ProcessConfig()
    noise, _ = draw_noise((200, 4), SamplerConfig(), torch_generator(0, "test"), F64)

    def wild(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return 10 * x

    clipped = sample(wild, noise, process=process, sampler=SamplerConfig(steps=3, clip=1.5))
    assert clipped.abs().max() == 1.5
    scaled = sample(wild, noise, process=process, sampler=SamplerConfig(steps=1, clip=1.5, threshold=1.0))
    # Scaling keeps the direction of a sample and brings its largest entry to the bound.
    assert torch.allclose(scaled.abs().amax(1), torch.full((200,), 1.5, dtype=F64))
    assert torch.allclose(scaled / scaled.norm(dim=1, keepdim=True), noise / noise.norm(dim=1, keepdim=True))
    low, high = torch.tensor([-1.0, -2.0, 0.0, -0.5], dtype=F64), torch.tensor([1.0, 0.0, 0.1, 0.5], dtype=F64)
    held = sample(wild, noise, process=process, sampler=SamplerConfig(steps=3), bounds=(low, high))
    assert bool(((held >= low) & (held <= high)).all())


def test_predictions_invert_each_other() -> None:
    generator = torch_generator(0, "test")
    x0, eps = (torch.randn(100, generator=generator, dtype=F64) for _ in range(2))
    from forethought.diffusion import target

    for name in ("cosine", "flow"):
        for time in (0.05, 0.5, 0.95):
            (alpha,), (sigma,) = (v.tolist() for v in levels(ScheduleConfig(name=name), np.array([time])))
            x = alpha * x0 + sigma * eps
            for prediction in ("x0", "eps", "v", "velocity"):
                back = to_x0(prediction, target(prediction, x0, eps, alpha, sigma), x, alpha, sigma)
                assert torch.allclose(back, x0, atol=1e-10), (name, time, prediction)
            assert torch.allclose(to_eps(x0, x, alpha, sigma), eps, atol=1e-10)


def test_a_call_is_traced_without_reading_a_value_back() -> None:
    # What fails under torch.fx with fake tensors would break a CUDA graph too.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for name in ("ddim", "ddpm", "dpm2m", "euler", "heun", "consistency"):
            sampler = SamplerConfig(name=name, steps=3, clip=1.0)  # pyright: ignore[reportArgumentType]
            noise = torch.empty(4, 2)
            between = torch.empty(3, 4, 2) if sampler.noisy else None
            result = sample(lambda x, u: x * u, noise, process=ProcessConfig(), sampler=sampler, between=between)
            assert result.shape == (4, 2)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm2m", "euler", "heun", "consistency"])
def test_a_graph_could_capture_a_whole_call(name: Any) -> None:
    network = build_denoiser(denoiser_preset("tiny", size=3, horizon=4), seed=0).to("meta")
    sampler = SamplerConfig(name=name, steps=3, clip=2.0)
    noise = torch.empty((5, 4, 3), device="meta")
    between = torch.empty((3, 5, 4, 3), device="meta") if sampler.noisy else None
    with torch.no_grad(), NothingFromTheHost():
        drawn = sample(network.bind(), noise, process=ProcessConfig(), sampler=sampler, between=between)
    assert drawn.shape == noise.shape
    assert drawn.device.type == "meta"
