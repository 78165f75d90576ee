"""The loss: its minimiser, its weights and masks, the times it is taken at; distillation against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.diffusion.mixture import Mixture, exact
from tests.diffusion.test_sampling import ONE, TWO

from forethought.core.errors import InputError
from forethought.core.rng import torch_generator
from forethought.diffusion import (
    Grid,
    ProcessConfig,
    SamplerConfig,
    ScheduleConfig,
    add_noise,
    consistency_loss,
    diffusion_loss,
    draw_noise,
    levels,
    make_grid,
    one_step_loss,
    sample,
    train_times,
)

F64 = torch.float64


def batch(mixture: Mixture, count: int, process: ProcessConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch_generator(0, "test")
    x0 = mixture.draw(count, generator)
    return x0, torch.randn(x0.shape, generator=generator, dtype=F64), train_times(process, count, generator)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "velocity"])
@pytest.mark.parametrize("weighting", ["uniform", "min_snr"])
def test_the_exact_network_minimises_the_loss(prediction: str, weighting: str) -> None:
    process = ProcessConfig(prediction=prediction, weighting=weighting)  # pyright: ignore[reportArgumentType]
    x0, noise, times = batch(TWO, 3000, process)
    best = exact(TWO, process)
    values = {
        shift: float(
            diffusion_loss(
                lambda x, u, shift=shift: best(x, u) + shift, x0, process=process, noise=noise, times_B=times
            ).mean()
        )
        for shift in (-0.2, 0.0, 0.2)
    }
    assert values[0.0] < min(values[-0.2], values[0.2])


def test_min_snr_weighs_every_prediction_alike() -> None:
    results = []
    for prediction in ("x0", "eps", "v"):
        process = ProcessConfig(prediction=prediction, weighting="min_snr")
        x0, noise, times = batch(TWO, 200, process)
        results.append(diffusion_loss(exact(TWO, process), x0, process=process, noise=noise, times_B=times))
    assert torch.allclose(results[0], results[1], atol=1e-8)
    assert torch.allclose(results[0], results[2], atol=1e-8)


def test_masked_and_known_entries_do_not_count() -> None:
    process = ProcessConfig()
    x0 = torch.randn(3, 4, 2, generator=torch_generator(0, "x"))
    noise, times = torch.ones(3, 4, 2), torch.tensor([0.2, 0.5, 0.9])
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0])[None, :, None]
    known = torch.zeros(3, 4, 2, dtype=torch.bool)
    known[:, 0] = True
    output = torch.zeros(3, 4, 2, requires_grad=True)
    seen: list[torch.Tensor] = []

    def denoise(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return output

    loss = diffusion_loss(denoise, x0, process=process, noise=noise, times_B=times, mask=mask, known=known)
    assert torch.allclose(loss, x0[:, 1].square().mean(-1))
    loss.sum().backward()
    assert output.grad is not None
    assert (output.grad.abs().sum((0, 2)) > 0).tolist() == [False, True, False, False]
    assert torch.equal(seen[0][:, 0], x0[:, 0])
    assert not torch.equal(seen[0][:, 1], x0[:, 1])


def test_noise_is_added_as_the_schedule_says() -> None:
    process = ProcessConfig(schedule=ScheduleConfig(num_levels=20))
    x0, noise = torch.full((3, 2), 2.0, dtype=F64), torch.full((3, 2), -1.0, dtype=F64)
    times = torch.tensor([0.05, 0.5, 1.0], dtype=F64)
    alpha, sigma = levels(process.schedule, times.numpy())
    assert np.allclose(add_noise(process, x0, noise, times)[:, 0], 2 * alpha - sigma)


def test_times_cover_every_stratum_and_every_level() -> None:
    times = train_times(ProcessConfig(), 64, torch_generator(0, "t"))
    assert sorted(torch.ceil(times * 64).int().tolist()) == list(range(1, 65))
    assert not torch.equal(times.sort().values, times)
    discrete = train_times(ProcessConfig(schedule=ScheduleConfig(num_levels=16)), 64, torch_generator(0, "t"))
    assert sorted((discrete * 16).tolist()) == [k for k in range(1, 17) for _ in range(4)]
    again = train_times(ProcessConfig(), 64, torch_generator(0, "t"))
    assert torch.equal(times, again)


def test_shapes_that_do_not_fit_are_refused() -> None:
    process, x0 = ProcessConfig(), torch.zeros(3, 2)
    with pytest.raises(InputError, match="one time each"):
        diffusion_loss(lambda x, u: x, x0, process=process, noise=x0, times_B=torch.ones(1))
    with pytest.raises(InputError, match=r"returned \(3, 1\) for samples \(3, 2\)"):
        diffusion_loss(lambda x, u: x[:, :1], x0, process=process, noise=x0, times_B=torch.ones(3))
    grid = make_grid(process, SamplerConfig(steps=4))
    with pytest.raises(InputError, match="0 to 3"):
        consistency_loss(*[lambda x, u: x] * 3, x0, process=process, grid=grid, noise=x0, index_B=torch.full((3,), 4))
    with pytest.raises(InputError, match="distil a deterministic sampler"):
        one_step_loss(*[lambda x, u: x] * 2, x0, process=process, sampler=SamplerConfig(name="ddpm"))


def jump_of_gaussian(process: ProcessConfig, scale: float = 1.0):
    """The exact consistency function of the single Gaussian, scaled to spoil it."""
    mean, std = ONE.means[0], float(ONE.stds[0])

    def jump(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (torch.from_numpy(v)[:, None] for v in levels(process.schedule, times.numpy()))
        return mean + scale * std * (x - alpha * mean) / torch.sqrt(alpha**2 * std**2 + sigma**2)

    return jump


def test_the_exact_consistency_function_has_almost_no_loss() -> None:
    process = ProcessConfig()
    losses = {}
    for steps in (20, 40):
        grid = make_grid(process, SamplerConfig(steps=steps))
        x0, noise, _ = batch(ONE, 4 * steps, process)
        index = torch.arange(4 * steps) % steps
        for scale in (1.0, 1.2):
            jump = jump_of_gaussian(process, scale)
            values = consistency_loss(
                jump, jump, exact(ONE, process), x0, process=process, grid=grid, noise=noise, index_B=index
            )
            losses[steps, scale] = float(values.mean())
    # One teacher step errs by the square of its length, the loss by its fourth power.
    assert losses[40, 1.0] < losses[20, 1.0] / 8 < 1e-4
    assert losses[20, 1.2] > 3 * losses[20, 1.0]
    samples = sample(
        jump_of_gaussian(process),
        draw_noise((4000, 2), SamplerConfig(), torch_generator(5, "t"), F64)[0],
        process=process,
        sampler=SamplerConfig(name="consistency", steps=1),
        between=torch.zeros(1, 4000, 2, dtype=F64),
    )
    assert samples.std(0).tolist() == pytest.approx([0.6, 0.6], rel=0.05)


def test_consistency_aims_one_teacher_step_further_on() -> None:
    process = ProcessConfig(prediction="v")
    grid = make_grid(process, SamplerConfig(steps=5))
    x0, noise, _ = batch(TWO, 5, process)
    index, seen = torch.arange(5), []

    def slow(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        seen.append((x, times))
        return torch.zeros_like(x)

    teacher = exact(TWO, process)
    consistency_loss(teacher, slow, teacher, x0, process=process, grid=grid, noise=noise, index_B=index)
    ((x_j, times),) = seen
    assert times.tolist() == pytest.approx(grid.times[1:])
    for row in range(5):
        here = Grid(grid.times[row : row + 2], grid.alphas[row : row + 2], grid.sigmas[row : row + 2])
        x_k = grid.alphas[row] * x0[row] + grid.sigmas[row] * noise[row]
        step = sample(teacher, x_k[None], process=process, sampler=SamplerConfig(steps=1), grid=here)
        assert torch.allclose(step[0], x_j[row], atol=1e-9)


def test_a_one_step_student_learns_the_teachers_map() -> None:
    process, sampler = ProcessConfig(), SamplerConfig(name="dpm2m", steps=8)
    teacher = exact(TWO, process)
    generator = torch_generator(0, "student")
    shapes = ((2, 64), (64,), (64, 64), (64,), (64, 2), (2,))
    scale = [math.sqrt(1.0 / shape[0]) if len(shape) == 2 else 0.0 for shape in shapes]
    weights = [
        (s * torch.randn(shape, generator=generator, dtype=F64)).requires_grad_()
        for s, shape in zip(scale, shapes, strict=True)
    ]

    def student(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        first = torch.tanh(x @ weights[0] + weights[1])
        return torch.tanh(first @ weights[2] + weights[3]) @ weights[4] + weights[5]

    optimiser = torch.optim.Adam(weights, lr=1e-2)
    losses = []
    for _ in range(120):
        noise = torch.randn((128, 2), generator=generator, dtype=F64)
        loss = one_step_loss(student, teacher, noise, process=process, sampler=sampler).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.05 * losses[0]
    noise = torch.randn((4000, 2), generator=generator, dtype=F64)
    with torch.no_grad():
        samples = sample(student, noise, process=process, sampler=SamplerConfig(steps=1))
    share = float((TWO.shares(samples, 1.0, 1e-9).argmax(1) == 0).double().mean())
    assert share == pytest.approx(0.3, abs=0.05)
