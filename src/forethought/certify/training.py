"""`certify`: from a declared prior and labelled data to a certified classifier, for any module.

Every combination of the prior's grids is trained short, coded, decoded again and scored as a verifier would; the best
bound is issued. Choosing among candidates is free, since the prior paid for all of them at once.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forethought.certify.certificate import Certificate, as_data, issue
from forethought.certify.certificate.data import Data
from forethought.certify.certificate.data import Examples as ExampleData
from forethought.certify.certificate.derive import Derived
from forethought.certify.compress import (
    Examples,
    bound_slope,
)
from forethought.certify.compress.phases import class_loss
from forethought.certify.decoder import Recipe, count_errors
from forethought.certify.decoder.architectures import GIVEN
from forethought.certify.given import certify_holdout
from forethought.certify.ledger import DeltaLedger
from forethought.certify.lint import (
    Finding,
    lint_behaviour,
    lint_data,
    lint_declaration,
    lint_module,
    refuse,
)
from forethought.certify.training_search import Candidate, CertifySpec, Job, num_buffers, search
from forethought.core.errors import ConfigError, InputError
from forethought.core.rng import generator
from forethought.stats.divergence import clopper_pearson

__all__ = ["Candidate", "CertifiedModel", "CertifySpec", "HoldOut", "Job", "certify", "num_buffers", "random_labels"]

LEDGER = "delta-ledger.json"


@dataclass(frozen=True)
class HoldOut:
    """The honest competitor: what data that were not used at all say, at the same confidence."""

    errors: int
    n: int
    risk: float
    bound: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class CertifiedModel:
    """A certificate, the network that its message means, and all that a report shows beside it."""

    certificate: Certificate
    module: nn.Module
    findings: tuple[Finding, ...]
    candidates: tuple[dict[str, Any], ...]
    holdout: HoldOut | None
    seconds: float
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def bound(self) -> float:
        """The certified upper bound on the risk."""
        return self.certificate.bound

    @property
    def vacuous(self) -> bool:
        """Whether the bound says no more than the trivial predictor."""
        return self.certificate.vacuous

    @property
    def statement(self) -> str:
        """What is guaranteed, in words, and what is not."""
        return self.certificate.statement

    def save(self, directory: Path | str, *, replace: bool = False) -> Path:
        """Publish certificate.json and message.bin; see Certificate.save."""
        return self.certificate.save(directory, replace=replace)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of a result as JSON values."""
        document = self.certificate.to_dict()
        result = document["result"]
        return {
            "bound": self.bound,
            "vacuous": self.vacuous,
            "train_risk": result["train_risk"],
            "n": result["n"],
            "trivial": result["trivial"],
            "bits": document["bits"],
            "delta": document["delta"],
            "bounds": result["bounds"],
            "holdout": None if self.holdout is None else dataclasses.asdict(self.holdout),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "candidates": list(self.candidates),
            "prior_sha256": document["prior_sha256"],
            "data_sha256": document["data"]["sha256"],
            "message_bytes": document["message"]["bytes"],
            "statement": self.statement,
            "seconds": self.seconds,
            **self.extra,
        }


def certify(
    model: nn.Module | None,
    data: object,
    spec: CertifySpec,
    *,
    test: object | None = None,
    groups: list[object] | None = None,
    directory: Path | str | None = None,
    ledger: Path | str | None = None,
    base: Mapping[str, Tensor] | None = None,
    show: bool = True,
) -> CertifiedModel:
    """Train a short version of a classifier on (inputs, labels) and certify it; test data are only ever reported.

    `model` is a module of the user's own for a prior with architecture "given", whose code is used and whose weights
    are not, or None where the prior names an architecture of the decoder. With a directory, training there resumes.
    `ledger` is the file of the data set's delta ledger, shared by all its certificates; else it is in the directory.

    Raises:
        AssumptionError: an assumption of the bound fails; the findings are named.
        InputError: the data, the prior or the ledger are refused.
        InterruptedRunError: interrupted and saved; the same call goes on.
    """
    started = time.perf_counter()
    given = as_data(data)
    if not isinstance(given, ExampleData):
        raise InputError("certify takes (inputs, labels); certify_tokens takes a sequence of tokens")
    own = own_copy(model, spec.prior.recipe)
    findings = _lint(own, given, spec, groups, base)
    refuse(findings)
    training = spec.training
    examples = Examples(_as_float(given.inputs), given.labels.astype(np.int64), training.batch_size, training.seed)

    def price(figures: Mapping[str, float], bits: float) -> float:
        error = max(figures["error"], 1.0 / given.size)
        slope = bound_slope(error, given.size, bits, spec.delta)
        # The loss stands for the error in proportion: so many nats of it are one error at this point of training.
        return slope.risk_per_bit * figures["cross_entropy"] / error

    with workplace(directory) as place:
        found = search(spec, given, own, base, Job(Path(place), examples, class_loss, price, show))
        best = min(found, key=lambda each: each.bound)
        shares = open_ledger(given, spec, directory, ledger)
        holdout = hold_out(best.derived, test, spec.delta)
        reported = {} if holdout is None else {"test_risk": holdout.risk, "test_n": holdout.n, "holdout": holdout.bound}
        certificate = issue(
            spec.prior,
            best.recipe,
            best.message,
            given,
            ledger=shares,
            delta=spec.delta,
            purpose=spec.purpose,
            module=copy.deepcopy(own),
            base=base,
            derived=best.derived,
            assumptions=[f"{finding.name}: {finding.message}" for finding in findings],
            reported=reported,
        )
    rows = tuple(each.to_row() for each in sorted(found, key=lambda each: each.bound))
    seconds = time.perf_counter() - started
    return CertifiedModel(certificate, best.derived.network.module, tuple(findings), rows, holdout, seconds)


def random_labels(data: object, num_classes: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs with labels drawn uniformly: the control whose certificate must come out vacuous.

    Raises:
        InputError: the data are not (inputs, labels).
    """
    given = as_data(data)
    if not isinstance(given, ExampleData):
        raise InputError("the random-label control takes (inputs, labels)")
    drawn = generator(seed, "certify.control").integers(0, num_classes, given.size)
    return given.inputs, drawn.astype(np.int64)


def own_copy(model: nn.Module | None, recipe: Recipe) -> nn.Module | None:
    """Return a copy of the user's module in evaluation mode, or None for an architecture of the decoder.

    Raises:
        ConfigError: a module is given and the prior names an architecture, or the other way round.
    """
    if (model is not None) != (recipe.architecture == GIVEN):
        raise ConfigError(
            f"the prior's architecture is {recipe.architecture!r} and "
            f"{'a' if model is not None else 'no'} module "
            f"was given; "
            f"a module goes with architecture {GIVEN!r}, and only with it"
        )
    return None if model is None else copy.deepcopy(model).eval()


def workplace(directory: Path | str | None) -> Any:
    """Return a context manager for a place of work: the directory given, or one that ends with the block."""
    return tempfile.TemporaryDirectory(prefix="forethought-") if directory is None else nullcontext(directory)


def open_ledger(data: Data, spec: CertifySpec, directory: Path | str | None, path: Path | str | None) -> DeltaLedger:
    """Return the delta ledger of a data set: in the file named, else in the directory, else in memory."""
    if path is None and directory is not None:
        path = Path(directory) / LEDGER
    return DeltaLedger(data.sha256, spec.total_delta, path=path)


def hold_out(derived: Derived, test: object | None, delta: float) -> HoldOut | None:
    """Return what unused data say of the network: the one-sided exact bound at delta and the 95 % interval."""
    if test is None:
        return None
    given = as_data(test)
    if not isinstance(given, ExampleData):
        raise InputError("test data for a classifier are (inputs, labels)")
    if given.groups is not None:
        raise InputError("a hold-out counts independent examples; give one test example of each group, without groups")
    errors = count_errors(derived.network, given.inputs, given.labels)
    bound = certify_holdout(errors, given.size, delta)
    return HoldOut(errors, given.size, errors / given.size, bound, clopper_pearson(errors, given.size))


def _lint(
    module: nn.Module | None,
    data: ExampleData,
    spec: CertifySpec,
    groups: list[object] | None,
    base: Mapping[str, Tensor] | None,
) -> list[Finding]:
    findings = lint_declaration(spec.declared, spec.prior.sha256)
    labels = np.asarray(data.labels)
    num_classes = int(labels.max()) + 1 if labels.size and labels.dtype.kind in "iu" else 1
    findings += lint_data(data.inputs, labels, num_classes, groups=groups, normaliser=spec.normaliser)
    if module is not None:
        # Persistent buffers are coded in the message, so only others could smuggle data.
        findings += lint_module(module, initial=dict(module.named_buffers()))
        if not any(finding.severity == "error" for finding in findings):
            findings += lint_behaviour(module, torch.from_numpy(_as_float(data.inputs[:64])))
        if spec.prior.recipe.num_buffers != num_buffers(module):
            message = (
                f"the module has {num_buffers(module)} numbers in persistent buffers and the recipe codes "
                f"{spec.prior.recipe.num_buffers}; set num_buffers in the recipe"
            )
            findings.append(Finding("uncoded-buffer", "error", message))
    if base is not None:
        message = "the base weights are given: the bound holds only if they were made without these data"
        findings.append(Finding("given-base-weights", "warning", message))
    return findings


def _as_float(inputs: np.ndarray) -> np.ndarray:
    return np.asarray(inputs, dtype=np.float32)
