"""`certify` from end to end: any module, honest ledgers, refused assumptions, and a control that comes out vacuous."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from forethought.certify import certify_given, verify
from forethought.certify.compress import CompressionConfig
from forethought.certify.decoder import CodebookRecipe, Prior, Recipe, SubspaceRecipe
from forethought.certify.lint import AssumptionError
from forethought.certify.training import CertifySpec, certify, num_buffers, random_labels
from forethought.core.errors import ConfigError, InputError
from forethought.data.images import load_digits

QUICK = CompressionConfig(
    steps=300, quantise_steps=150, batch_size=128, lr=3e-2, checkpoint_every=0, thrift=(0.0, 0.05)
)


def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    train, test = load_digits()
    return (train.inputs, train.labels), (test.inputs, test.labels)


def spec(**changes: object) -> CertifySpec:
    recipe = Recipe(
        architecture="mlp",
        settings={"num_inputs": 64, "num_classes": 10, "hidden": [64, 64]},
        subspace=SubspaceRecipe(dimension=100),
        codebook=CodebookRecipe(levels=5),
    )
    prior = Prior(recipe=recipe, choices={"codebook.levels": [3, 5, 7, 9]})
    plain = CertifySpec(prior=prior, training=QUICK, attempt={"codebook.levels": [5]})
    return dataclasses.replace(plain, **changes)


def given_spec(module: nn.Module, **changes: object) -> CertifySpec:
    recipe = Recipe(
        architecture="given",
        settings={},
        subspace=SubspaceRecipe(dimension=60),
        codebook=CodebookRecipe(levels=5),
        num_buffers=num_buffers(module),
    )
    return CertifySpec(prior=Prior(recipe=recipe), training=QUICK, **changes)


def test_a_certificate_of_the_digits_holds_for_a_stranger(tmp_path: Path):
    train, test = digits()
    found = certify(None, train, spec(), test=test, show=False)
    document = found.certificate.document
    assert found.bound < 0.7
    assert not found.vacuous
    assert found.holdout is not None
    assert found.holdout.interval[0] <= found.holdout.risk <= found.holdout.interval[1] < found.bound
    # Four levels could have been chosen: the ledger pays two bits although one was tried.
    assert document.bits.choices == 2.0
    assert found.bound == certify_given(document.result.errors, 1400, document.bits.total, 0.05).bound
    found.save(tmp_path / "certificate")
    assert verify(tmp_path / "certificate", train).bound == pytest.approx(found.bound, abs=1e-12)
    module_errors = int((found.module(torch.from_numpy(train[0]).double()).argmax(1).numpy() != train[1]).sum())
    assert module_errors == document.result.errors


def test_any_module_will_do_and_its_own_weights_are_left_alone(tmp_path: Path):
    train, test = digits()
    with torch.random.fork_rng(devices=[]):
        module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Linear(3, 64),
                               nn.ReLU(), nn.Linear(64, 10))  # fmt: skip
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(AssumptionError, match="uncoded-buffer"):
        certify(module, train, given_spec(nn.ReLU()), show=False)
    found = certify(module, train, given_spec(module), test=test, show=False)
    assert not found.vacuous
    assert module.training
    assert found.certificate.document.bits.buffers == 16 * 6
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    found.save(tmp_path / "c")
    assert verify(tmp_path / "c", train, module=module).bound == found.bound


def test_random_labels_come_out_vacuous():
    train, _ = digits()
    control = random_labels(train, 10)
    assert not np.array_equal(control[1], train[1])
    found = certify(None, control, spec(), show=False)
    assert found.vacuous
    assert found.bound > 0.9
    assert "VACUOUS" in found.statement


def test_broken_assumptions_refuse_before_any_training():
    (inputs, labels), _ = digits()
    moved = (inputs - inputs.mean(0)) / np.where(inputs.std(0) > 0, inputs.std(0), 1)
    with pytest.raises(AssumptionError, match="data-dependent-normaliser"):
        certify(None, (moved.astype(np.float32), labels), spec(), show=False)
    with pytest.raises(AssumptionError, match="grouped-examples"):
        certify(None, (inputs, labels), spec(), groups=[i // 2 for i in range(len(labels))], show=False)
    with pytest.raises(AssumptionError, match="prior-changed"):
        certify(None, (inputs, labels), spec(declared="0" * 64), show=False)
    with pytest.raises(ConfigError, match="no module was given"):
        certify(None, (inputs, labels), given_spec(nn.ReLU()), show=False)


def test_a_declared_prior_leaves_no_finding():
    train, _ = digits()
    declared = spec(declared=spec().prior.sha256, training=dataclasses.replace(QUICK, steps=20, quantise_steps=10))
    found = certify(None, train, declared, show=False)
    assert found.findings == ()
    assert found.certificate.document.assumptions == []


def test_one_ledger_is_shared_by_all_certificates_of_a_data_set(tmp_path: Path):
    train, _ = digits()
    short = dataclasses.replace(QUICK, steps=20, quantise_steps=10)
    first = spec(training=short, delta=0.03, total_delta=0.05, purpose="first")
    certify(None, train, first, ledger=tmp_path / "ledger.json", show=False)
    second = dataclasses.replace(first, purpose="second")
    with pytest.raises(InputError, match="exceeds what is left"):
        certify(None, train, second, ledger=tmp_path / "ledger.json", show=False)


def test_what_is_attempted_must_be_in_the_grid_that_is_paid_for():
    with pytest.raises(ConfigError, match="no part of the prior's grid"):
        spec(attempt={"codebook.levels": [6]})
