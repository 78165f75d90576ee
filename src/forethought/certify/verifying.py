"""Verification by a stranger: from the files and the data alone, with the decoder and without any training code."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from forethought.certify.certificate.data import as_data
from forethought.certify.certificate.derive import Derived, derive
from forethought.certify.certificate.document import Certificate, Document, read_certificate
from forethought.core.config import to_dict
from forethought.core.errors import ArtefactError

TOLERANCE = 1e-12
NOT_VERIFIED = (
    "that the prior was declared before the data were seen",
    "that the examples are independent, or the tokens in their true order",
    "that the delta ledger names every certificate of these data",
)


@dataclass(frozen=True)
class Verification:
    """A certificate that held: everything in `certificate` but `reported` and `assumptions` was derived again."""

    certificate: Certificate
    derived: Derived
    seconds: float

    @property
    def bound(self) -> float:
        """The bound, as derived here."""
        return self.derived.result.bound

    def to_dict(self) -> dict[str, Any]:
        """Return what was verified as JSON values."""
        document = self.certificate.document
        return {
            "verified": True,
            "bound": self.bound,
            "train_risk": self.derived.result.train_risk,
            "n": self.derived.result.n,
            "loss": self.derived.result.loss,
            "bits": self.derived.bits.total,
            "delta": document.delta.delta,
            "vacuous": self.certificate.vacuous,
            "data_sha256": document.data.sha256,
            "prior_sha256": document.prior_sha256,
            "statement": self.certificate.statement,
            "not_verified": [*NOT_VERIFIED, *document.reported],
            "seconds": self.seconds,
        }


def verify(
    path: Path | str,
    data: object,
    *,
    module: nn.Module | None = None,
    base: Mapping[str, Tensor] | None = None,
) -> Verification:
    """Derive a certificate again from its files and the data, and hold every claim against it to 1e-12.

    `data` is (inputs, labels) or an array of tokens, the very data of the certificate. A network of the maker's own
    code needs its `module`; one that starts from public weights needs them as `base`, name to tensor.

    Raises:
        ArtefactError: a file is damaged, forged or too large, the data are others, or a claim does not hold; the
            message names it with the value claimed and the value found.
        DataError: the data are no arrays of the right kind.
    """
    started = time.perf_counter()
    certificate = read_certificate(path)
    document = certificate.document
    given = as_data(data)
    if (given.kind, given.size) != (document.data.kind, document.data.size) or given.sha256 != document.data.sha256:
        raise ArtefactError(
            f"the data are not those of the certificate: it is about {document.data.size} {document.data.kind} with "
            f"SHA-256 {document.data.sha256[:16]}...; these are {given.size} {given.kind} with {given.sha256[:16]}..."
        )
    derived = derive(
        document.prior, document.chosen, certificate.message, given, document.delta.delta, module=module, base=base
    )
    check_claims(document, derived)
    return Verification(certificate, derived, time.perf_counter() - started)


def check_claims(document: Document, derived: Derived) -> None:
    """Raise an ArtefactError for the first claim that is not what was derived, to 1e-12."""
    scale = derived.weights.absolute_sum
    for name, found in (("bits", derived.bits), ("weights", derived.weights), ("result", derived.result)):
        claimed = to_dict(getattr(document, name))
        _compare(name, claimed, to_dict(found), scale if name == "weights" else 0.0)


def _compare(name: str, claimed: Any, found: Any, scale: float) -> None:
    if isinstance(found, dict):
        if not isinstance(claimed, dict) or claimed.keys() != found.keys():
            raise ArtefactError(f"the certificate claims other entries in {name} than those that follow from it")
        for key, value in found.items():
            _compare(f"{name}.{key}", claimed[key], value, scale)
    elif isinstance(found, list):
        for index, value in enumerate(found):
            _compare(f"{name}[{index}]", claimed[index], value, scale)
    elif isinstance(found, float) and isinstance(claimed, int | float):
        if not math.isclose(claimed, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE * scale):
            raise ArtefactError(f"the certificate claims {name} = {claimed!r}, but {found!r} follows from its message")
    elif claimed != found:
        raise ArtefactError(f"the certificate claims {name} = {claimed!r}, but {found!r} follows from its message")
