"""Stochastic networks: the divergence against a closed form, objectives against the bounds, a certificate."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.certify.test_requential import blobs
from torch import nn
from torch.distributions import Normal, kl_divergence

from forethought.certify import verify
from forethought.certify.bounds import (
    mcallester,
    monte_carlo_pac_bayes,
    pac_bayes_lambda,
    pac_bayes_quadratic,
)
from forethought.certify.lint import AssumptionError
from forethought.certify.pacbayes import OBJECTIVES, StochasticConfig, certify_stochastic
from forethought.certify.stochastic import GaussianNetwork
from forethought.core.errors import ArtefactError, ConfigError, InputError
from forethought.core.rng import torch_generator


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def test_the_divergence_is_that_of_gaussians():
    gaussian = GaussianNetwork(network(), prior_deviation=0.2)
    assert float(gaussian.divergence().detach()) == pytest.approx(0.0, abs=1e-4)
    with torch.no_grad():
        gaussian.mean.add_(0.1)
        gaussian.raw_deviation.sub_(0.5)
    expected = kl_divergence(Normal(gaussian.mean, gaussian.deviation), Normal(gaussian.centre, 0.2)).sum()
    assert float(gaussian.divergence().detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "bound"), [("fquad", pac_bayes_quadratic), ("fclassic", mcallester), ("flambda", pac_bayes_lambda)]
)
def test_objectives_are_the_bounds(name: str, bound):
    n, kl, delta, risk = 1000, 40.0, 0.05, 0.13
    complexity = (kl + math.log(2 * math.sqrt(n) / delta)) / n
    weight = 2.0 / (1.0 + math.sqrt(2.0 * risk / complexity + 1.0))
    found = OBJECTIVES[name](torch.tensor(risk), torch.tensor(complexity), torch.tensor(weight))
    assert float(found) == pytest.approx(bound(risk, n, kl / math.log(2), delta), rel=1e-5)


def test_a_stochastic_network_is_certified(tmp_path: Path):
    data, test = blobs(3000, "sample"), blobs(1000, "test")
    settings = StochasticConfig(steps=250, num_draws=100, lr=2e-2, batch_size=200, checkpoint_every=0)
    found = certify_stochastic(network(), data, settings, tmp_path / "a", test=test, show=False)
    assert found.holdout is not None
    assert found.holdout.interval[0] <= found.holdout.risk <= found.holdout.interval[1] < found.bound < 0.5
    result, bits = found.certificate.document.result, found.certificate.document.bits
    assert found.bound == monte_carlo_pac_bayes(result.train_risk, 100, 3000, bits.total, 0.05)
    again = certify_stochastic(network(), data, settings, tmp_path / "a", test=test, show=False)
    assert again.certificate == found.certificate
    pair = (data.inputs, data.labels)
    assert verify(found.save(tmp_path / "c"), pair, module=network()).bound == found.bound
    with pytest.raises(ArtefactError, match="give a module"):
        verify(tmp_path / "c", pair)


def test_a_grid_of_prior_deviations_is_paid_for(tmp_path: Path):
    common = {"steps": 2, "num_draws": 2, "checkpoint_every": 0}
    grid = StochasticConfig(prior_deviation=0.1, prior_deviations=(0.03, 0.1, 0.3, 1.0), **common)
    found = certify_stochastic(network(), blobs(60, "sample"), grid, tmp_path / "a", show=False)
    assert found.certificate.document.bits.choices == 2.0
    with pytest.raises(ConfigError, match="not in its grid"):
        StochasticConfig(prior_deviation=0.2, prior_deviations=(0.1, 0.3))


def test_draws_differ_and_repeat_by_generator():
    gaussian = GaussianNetwork(network())
    x = torch.ones(2, 5)
    first, same, other = (gaussian(x, torch_generator(0, "t", step)).detach() for step in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_bad_settings_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="prior_deviation"):
        GaussianNetwork(network(), prior_deviation=0.0)
    buffered = network()
    buffered.register_buffer("mean_of_the_data", torch.ones(5))
    with pytest.raises(InputError, match="mean_of_the_data"):
        certify_stochastic(buffered, blobs(50, "sample"), StochasticConfig(steps=1), tmp_path / "a", show=False)
    norm = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).train()
    with pytest.raises(AssumptionError, match="batch-norm"):
        certify_stochastic(norm, blobs(50, "sample"), StochasticConfig(steps=1), tmp_path / "a", show=False)
