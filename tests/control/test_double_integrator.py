"""The built-in double integrator: exact, seeded, and driven through the verbs' own path."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from forethought.app.control.places import environment
from forethought.core.errors import ConfigError
from forethought.envs.double_integrator import STEP, DoubleIntegrator, rollout


def test_futures_are_those_of_the_closed_form():
    actions = np.linspace(-1.5, 1.0, 12)[None].repeat(2, 0)
    states = rollout([[0.3, -0.2], [1.0, 0.5]], actions, gain=0.5)
    force = 0.5 * np.clip(actions, -1, 1)
    time = STEP * np.arange(1, 13)
    velocity = np.array([[-0.2], [0.5]]) + STEP * np.cumsum(force, 1)
    assert states[..., 1] == pytest.approx(velocity)
    # Each push moves the position by h^2 (n - k - 1/2) until step n.
    lag = np.tril(np.arange(12)[:, None] - np.arange(12)[None] + 0.5)
    position = np.array([[0.3], [1.0]]) + np.array([[-0.2], [0.5]]) * time + STEP**2 * force @ np.tril(lag).T
    assert states[..., 0] == pytest.approx(position)


def test_it_is_an_environment_that_a_seed_decides():
    make = environment("forethought/DoubleIntegrator-v0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mass on a line has no bounds
        check_env(make().unwrapped, skip_render_check=True)
    runs = []
    for _ in range(2):
        env = DoubleIntegrator(gusts=0.5)
        seen = [env.reset(seed=3)[0]]
        seen += [env.step(np.array([0.1], np.float32))[0] for _ in range(20)]
        runs.append(np.stack(seen))
    assert np.array_equal(*runs)
    calm = DoubleIntegrator()
    calm.reset(options={"state": runs[0][0]})
    still = np.stack([calm.step(np.array([0.1], np.float32))[0] for _ in range(20)])
    assert np.abs(still - runs[0][1:]).max() > 0.1
    assert still == pytest.approx(rollout(runs[0][:1], np.full((1, 20), 0.1))[0], abs=1e-5)
    assert DoubleIntegrator(goal=0.5).step(np.zeros(1, np.float32))[1] == pytest.approx(np.exp(-0.5))
    with pytest.raises(ConfigError, match="gusts"):
        DoubleIntegrator(gusts=2.0)
