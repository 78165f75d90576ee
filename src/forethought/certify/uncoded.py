"""What certificates of networks that no message codes share: their data, checks, ledger, hold-out and document."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import forethought
from forethought.certify.certificate import Examples, as_data
from forethought.certify.certificate.claims import DeltaClaim
from forethought.certify.certificate.drawn import Drawn
from forethought.certify.certificate.issue import data_claim, draw_delta, message_claim
from forethought.certify.decoder.priors import GaussianPrior, StudentPrior
from forethought.certify.given import certify_holdout
from forethought.certify.ledger import DeltaLedger
from forethought.certify.lint import Finding, lint_behaviour, lint_data, lint_declaration, lint_module, refuse
from forethought.certify.training import LEDGER, HoldOut
from forethought.core.errors import InputError
from forethought.data.images import LabelledImages
from forethought.stats.divergence import clopper_pearson


def examples_of(data: object) -> Examples:
    """Return labelled images or (inputs, labels) as the examples of a certificate, in the type they came in.

    Raises:
        InputError: they are neither.
    """
    if isinstance(data, LabelledImages):
        return Examples(data.inputs, data.labels)
    given = as_data(data)
    if not isinstance(given, Examples):
        raise InputError("this method takes labelled examples, (inputs, labels); certify_tokens takes tokens")
    return given


def lint_plain(module: nn.Module | None, data: Examples, *, declared: str | None, prior_sha256: str) -> list[Finding]:
    """Return what stands against a certificate of a whole network; errors are refused at once, before any training.

    Raises:
        AssumptionError: a finding is an error.
    """
    labels = np.asarray(data.labels)
    num_classes = int(labels.max()) + 1 if labels.size and labels.dtype.kind in "iu" else 1
    findings = lint_declaration(declared, prior_sha256) + lint_data(data.inputs, labels, num_classes)
    if module is not None:
        refuse(lint_module(module))
        own = copy.deepcopy(module).eval()
        findings += lint_module(module) + lint_behaviour(
            own, torch.from_numpy(np.asarray(data.inputs[:64], dtype=np.float32))
        )
    refuse(findings)
    return findings


def drawn_share(
    data: Examples,
    prior: GaussianPrior | StudentPrior,
    purpose: str,
    settings: Any,
    directory: Path | str | None,
    path: Path | str | None,
) -> DeltaClaim:
    """Draw a certificate's delta from the ledger of its data: in the file named, else in the directory, else in memory.

    Raises:
        InputError: too little is left for the data set.
    """
    if path is None and directory is not None:
        path = Path(directory) / LEDGER
    ledger = DeltaLedger(data.sha256, settings.total_delta or settings.delta, path=path)
    return draw_delta(ledger, data, purpose, prior.sha256, settings.delta)


def holdout_of(errors: int, n: int, delta: float) -> HoldOut:
    """Return what n unused examples say: the one-sided exact bound at delta and the 95 % interval."""
    return HoldOut(errors, n, errors / n, certify_holdout(errors, n, delta), clopper_pearson(errors, n))


def common_claims(
    prior: GaussianPrior | StudentPrior,
    data: Examples,
    message: bytes,
    found: Drawn,
    findings: Sequence[Finding],
    holdout: HoldOut | None,
) -> dict[str, Any]:
    """Return the fields that the documents of both kinds share, by name."""
    reported = {} if holdout is None else {"test_risk": holdout.risk, "test_n": holdout.n, "holdout": holdout.bound}
    return {
        "prior": prior,
        "prior_sha256": prior.sha256,
        "data": data_claim(data),
        "message": message_claim(message),
        "bits": found.bits,
        "weights": found.weights,
        "result": found.result,
        "assumptions": [f"{finding.name}: {finding.message}" for finding in findings],
        "reported": reported,
        "version": forethought.__version__,
    }


@torch.no_grad()
def with_weights(found: Drawn) -> nn.Module:
    """Return the module of a certificate with its weights in place: the posterior's means, or the student's."""
    for name, parameter in found.module.named_parameters():
        parameter.copy_(found.weights_by_name[name])
    return found.module.eval().requires_grad_(False)
