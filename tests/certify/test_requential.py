"""Single-draw requential certificates: refusals, the ledger of log-ratios, and a bound that is not vacuous."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from forethought.certify.bounds import maurer_seeger
from forethought.certify.lint import AssumptionError
from forethought.certify.requential import RequentialConfig, _Session, certify_requential
from forethought.core.rng import generator
from forethought.data.images import LabelledImages


def blobs(n: int, stream: str) -> LabelledImages:
    draw = generator(0, stream)
    labels = draw.integers(0, 3, n)
    inputs = 2.0 * np.eye(5)[labels] + 0.4 * draw.standard_normal((n, 5))
    return LabelledImages(inputs.astype(np.float32), labels.astype(np.int64), 3)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


SETTINGS = RequentialConfig(steps=150, num_checkpoints=5, teacher_lr=2e-3, student_lr=1e-2, pool_is_independent=True)


def test_a_full_precision_network_is_certified():
    data, pool, test = blobs(4000, "sample"), blobs(500, "pool").inputs, blobs(2000, "test")
    found, weights = certify_requential(network(), data, pool, SETTINGS, test=test, show=False)
    assert found.experimental
    assert found.test_risk is not None
    assert found.test_risk < found.bound < 0.5
    assert found.bound == maurer_seeger(found.train_risk, 4000, found.bits + math.log2(5), 0.05)
    assert sum(weight.numel() for weight in weights.values()) == 5 * 16 + 16 + 16 * 3 + 3
    assert [step.step for step in found.path] == [30, 60, 90, 120, 150]


def test_a_teacher_that_is_its_own_student_costs_nothing():
    data, pool = blobs(500, "sample"), blobs(200, "pool").inputs
    session = _Session(network(), data, pool, SETTINGS)
    session.teacher = session.student
    session._learn = lambda *_: None  # neither side moves
    for step in range(1, 6):
        session.advance(step)
    assert session.nats == 0.0
    assert session.expected == 0.0


def test_realised_and_expected_log_ratios_agree_in_the_mean():
    data, pool = blobs(3000, "sample"), blobs(500, "pool").inputs
    session = _Session(network(), data, pool, SETTINGS)
    for step in range(1, 101):
        session.advance(step)
    assert session.nats > 20.0
    assert session.nats == pytest.approx(session.expected, rel=0.25)


def test_a_pool_that_is_not_independent_is_refused():
    data = blobs(300, "sample")
    with pytest.raises(AssumptionError, match="pool-not-independent"):
        certify_requential(network(), data, blobs(50, "pool").inputs, RequentialConfig(steps=20), show=False)
    with pytest.raises(AssumptionError, match="pool-overlaps-sample"):
        certify_requential(network(), data, data.inputs[:50], SETTINGS, show=False)
    with pytest.raises(AssumptionError, match="pool-shape"):
        certify_requential(network(), data, np.zeros((4, 9), np.float32), SETTINGS, show=False)
