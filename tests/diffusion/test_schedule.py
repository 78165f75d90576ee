"""Schedules and grids: the formulas, their ends, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core.errors import ConfigError
from forethought.diffusion import SCHEDULES, ProcessConfig, SamplerConfig, ScheduleConfig, levels, make_grid
from forethought.diffusion.schedule import discrete_signal, tensor_levels


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("num_levels", [None, 1, 10, 1000])
def test_every_schedule_goes_from_data_to_noise(name: str, num_levels: int | None) -> None:
    schedule = ScheduleConfig(name=name, num_levels=num_levels)
    alpha, sigma = levels(schedule, np.linspace(0, 1, 1001))
    assert (alpha[0], sigma[0]) == (1.0, 0.0)
    assert alpha[-1] <= 0.04
    assert (np.diff(alpha) <= 0).all()
    assert (np.diff(sigma) >= 0).all()
    if name == "flow":
        assert np.allclose(alpha + sigma, 1, atol=1e-15)
    else:
        assert np.allclose(alpha**2 + sigma**2, 1, atol=1e-15)


def test_cosine_is_the_formula_of_the_paper() -> None:
    def signal(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2

    alpha, _ = levels(ScheduleConfig(), np.array([0.1, 0.5, 0.9]))
    assert np.allclose(alpha**2, [signal(0.1), signal(0.5), signal(0.9)], rtol=1e-12)
    table = discrete_signal(ScheduleConfig(num_levels=10))
    betas = [min(1 - signal(k / 10) / signal((k - 1) / 10), 0.999) for k in range(1, 11)]
    assert np.allclose(table, np.cumprod([1, *(1 - b for b in betas)]), rtol=1e-10)
    assert table[10] == pytest.approx(0.001 * table[9])


def test_linear_is_the_integral_of_its_rate() -> None:
    u = np.linspace(0, 0.7, 100_001)
    rate = 0.1 + (20.0 - 0.1) * u
    integral = np.sum((rate[1:] + rate[:-1]) / 2) * (u[1] - u[0])
    alpha, _ = levels(ScheduleConfig(name="linear"), np.array([0.7]))
    assert alpha[0] ** 2 == pytest.approx(math.exp(-integral), rel=1e-8)


def test_tensor_levels_multiply_samples() -> None:
    times = torch.tensor([0.0, 0.5])
    alpha, sigma = tensor_levels(ScheduleConfig(name="flow"), times, torch.zeros(2, 3, 4))
    assert alpha.shape == (2, 1, 1)
    assert alpha.flatten().tolist() == [1.0, 0.5]
    assert sigma.flatten().tolist() == [0.0, 0.5]


@given(
    steps=st.integers(1, 40),
    extra=st.integers(0, 60),
    spacing=st.sampled_from(["uniform", "quadratic", "log_snr"]),
    name=st.sampled_from(["cosine", "linear", "sigmoid", "flow"]),
    discrete=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_grids_fall_strictly_from_noise_to_data(
    steps: int, extra: int, spacing: str, name: str, discrete: bool
) -> None:
    schedule = ScheduleConfig(name=name, num_levels=steps + extra if discrete else None)
    sampler = SamplerConfig(steps=steps, spacing=spacing)  # pyright: ignore[reportArgumentType]
    grid = make_grid(ProcessConfig(schedule=schedule), sampler)
    assert len(grid.times) == steps + 1
    assert (grid.times[0], grid.times[-1], grid.sigmas[-1]) == (1.0, 0.0, 0.0)
    assert (np.diff(grid.times) < 0).all()


def test_more_steps_than_levels_are_refused_and_one_level_works() -> None:
    process = ProcessConfig(schedule=ScheduleConfig(num_levels=8))
    with pytest.raises(ConfigError, match="9 sampling steps exceed the 8 levels"):
        make_grid(process, SamplerConfig(steps=9))
    assert make_grid(process, SamplerConfig(steps=8)).times == tuple(k / 8 for k in range(8, -1, -1))
    assert make_grid(ProcessConfig(schedule=ScheduleConfig(num_levels=1)), SamplerConfig(steps=1)).times == (1.0, 0.0)


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'cosine'"):
        ScheduleConfig(name="cosin")
    with pytest.raises(ConfigError, match=r"eta 0\.5 belongs to ddim"):
        SamplerConfig(name="dpm2m", eta=0.5)
    with pytest.raises(ConfigError, match="give clip too"):
        SamplerConfig(threshold=0.9)
    with pytest.raises(ConfigError, match="predict velocity or x0"):
        ProcessConfig(schedule=ScheduleConfig(name="flow"), prediction="eps")
    with pytest.raises(ConfigError, match=r"lie in \[0, 1\]"):
        levels(ScheduleConfig(), np.array([1.5]))
