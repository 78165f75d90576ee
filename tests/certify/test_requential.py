"""Single-draw requential certificates: refusals, the ledger of log-ratios, and a bound that is not vacuous."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from forethought.certify.bounds import maurer_seeger
from forethought.certify.decoder.student import Learner, Session
from forethought.certify.lint import AssumptionError
from forethought.certify.requential import RequentialConfig, certify_requential
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
    found = certify_requential(network(), data, pool, SETTINGS, test=test, show=False)
    result, bits = found.certificate.document.result, found.certificate.document.bits
    assert found.extra["experimental"]
    assert "EXPERIMENTAL" in found.statement
    assert found.holdout is not None
    assert found.holdout.risk < found.bound < 0.5
    assert found.bound == maurer_seeger(result.train_risk, 4000, bits.total, 0.05)
    assert bits.choices == math.log2(5)
    module_errors = int((found.module(torch.from_numpy(data.inputs).double()).argmax(1).numpy() != data.labels).sum())
    assert module_errors == result.errors
    assert [step["step"] for step in found.extra["path"]] == [30, 60, 90, 120, 150]


def session(data: LabelledImages, pool: np.ndarray) -> Session:
    return Session(network(), SETTINGS.prior(pool), SETTINGS.teacher, (data.inputs, data.labels), pool)


def test_a_teacher_that_is_its_own_student_costs_nothing():
    made = session(blobs(500, "sample"), blobs(200, "pool").inputs)
    made.teacher = made.student
    made.student.learn = lambda *_: None  # neither side moves
    for _ in range(5):
        made.advance()
    assert made.nats == 0.0
    assert made.expected == 0.0


def test_realised_and_expected_log_ratios_agree_in_the_mean():
    made = session(blobs(3000, "sample"), blobs(500, "pool").inputs)
    for _ in range(100):
        made.advance()
    assert made.nats > 20.0
    assert made.nats == pytest.approx(made.expected, rel=0.25)


def test_the_optimiser_is_adam():
    """Against torch's own, step by step."""
    data = blobs(60, "sample")
    inputs, labels = torch.from_numpy(data.inputs).double(), torch.from_numpy(data.labels)
    module, other = network().double(), network().double()
    other.load_state_dict(module.state_dict())
    learner = Learner(module, {name: each.detach() for name, each in module.named_parameters()}, 1e-2)
    adam = torch.optim.Adam(other.parameters(), lr=1e-2)
    for _ in range(20):
        learner.learn(inputs, labels)
        adam.zero_grad()
        torch.nn.functional.cross_entropy(other(inputs), labels).backward()
        adam.step()
    for name, each in other.named_parameters():
        assert torch.allclose(learner.weights[name], each, rtol=1e-9, atol=1e-12)


def test_seeds_that_were_tried_are_paid_for():
    data, pool = blobs(200, "sample"), blobs(50, "pool").inputs
    short = {"steps": 4, "num_checkpoints": 1, "pool_is_independent": True}
    once, often = (
        certify_requential(network(), data, pool, RequentialConfig(seeds_tried=tries, **short), show=False)
        for tries in (1, 16)
    )
    assert once.certificate.document.bits.choices == 0.0
    assert often.certificate.document.bits.choices == 4.0
    assert often.bound > once.bound


def test_a_pool_that_is_not_independent_is_refused():
    data = blobs(300, "sample")
    with pytest.raises(AssumptionError, match="pool-not-independent"):
        certify_requential(network(), data, blobs(50, "pool").inputs, RequentialConfig(steps=20), show=False)
    with pytest.raises(AssumptionError, match="pool-overlaps-sample"):
        certify_requential(network(), data, data.inputs[:50], SETTINGS, show=False)
    with pytest.raises(AssumptionError, match="pool-shape"):
        certify_requential(network(), data, np.zeros((4, 9), np.float32), SETTINGS, show=False)
