"""Verification by a stranger: from the files and the data alone, with the decoder and without any training code."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from forethought.certify.certificate.data import Data, Examples, as_data
from forethought.certify.certificate.derive import Derived, derive
from forethought.certify.certificate.document import Certificate, Document, StochasticDocument, read_certificate
from forethought.certify.certificate.drawn import Drawn, derive_requential, derive_stochastic
from forethought.certify.ledger import DeltaLedger
from forethought.core.config import to_dict
from forethought.core.errors import ArtefactError, ConfigError, DataError
from forethought.stats.divergence import kl_inverse_lower, kl_inverse_upper

TOLERANCE = 1e-12
NOT_VERIFIED = (
    "that the prior was declared before the data were seen",
    "that the examples are independent, or the tokens in their true order",
    "that the delta ledger names every certificate of these data",
)
_UNAUDITED = "that the maker did not choose its random draws; verify again with an audit seed of your own"
_ONE_RUN = "that the labels were drawn no more often than `attempts` says; the theorem is experimental"
_AUDIT_DELTA = 1e-6
"""Chance that an honest certificate is refused by an audit."""


@dataclass(frozen=True)
class Verification:
    """A certificate that held: everything in `certificate` but `reported` and `assumptions` was derived again."""

    certificate: Certificate
    derived: Derived | Drawn
    seconds: float
    audit: dict[str, float] | None = None

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
            "not_verified": [*NOT_VERIFIED, *self._left_open(), *document.reported],
            "audit": self.audit,
            "seconds": self.seconds,
        }

    def _left_open(self) -> list[str]:
        document = self.certificate.document
        drawn = document.kind == "stochastic" or getattr(document, "sample", None) is not None
        return [
            *([_UNAUDITED] if drawn and self.audit is None else []),
            *([_ONE_RUN] if document.kind == "requential" else []),
        ]


def verify(
    path: Path | str,
    data: object,
    *,
    module: nn.Module | None = None,
    base: Mapping[str, Tensor] | None = None,
    pool: np.ndarray | None = None,
    audit_seed: int | None = None,
    ledger: Path | str | None = None,
) -> Verification:
    """Derive a certificate again from its files and the data, and hold every claim against it to 1e-12.

    `data` is (inputs, labels[, groups]) or an array of tokens, the very data of the certificate. A network of the
    maker's own code needs its `module`; one that starts from public weights needs them as `base`, name to tensor; a
    requential one the `pool`, unless that is the head of the data. Where a risk was found through random draws, an
    `audit_seed` of the verifier's own draws anew, and a certificate whose draws were too lucky is refused. With the
    `ledger` of the data set, the certificate's share must stand in it.

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
    if ledger is not None:
        check_ledger(document, ledger)
    try:
        derived = _derive(certificate, given, module, base, pool, None)
        check_claims(document, derived)
        audit = None if audit_seed is None else _audit(certificate, given, module, base, derived, audit_seed)
    except ConfigError as error:
        raise ArtefactError(f"the certificate does not fit together: {error}") from error
    return Verification(certificate, derived, time.perf_counter() - started, audit)


def _derive(
    certificate: Certificate,
    data: Data,
    module: nn.Module | None,
    base: Mapping[str, Tensor] | None,
    pool: np.ndarray | None,
    audit_seed: int | None,
) -> Derived | Drawn:
    document, message, delta = certificate.document, certificate.message, certificate.document.delta.delta
    if isinstance(document, Document):
        return derive(
            document.prior,
            document.chosen,
            message,
            data,
            delta,
            module=module,
            base=base,
            sample=document.sample,
            audit_seed=audit_seed,
        )
    if not isinstance(data, Examples):
        raise DataError("this certificate is about labelled examples; give inputs and labels")
    own = copy.deepcopy(module)
    if isinstance(document, StochasticDocument):
        draws = document.draws
        return derive_stochastic(
            document.prior, document.chosen, message, data, delta, draws, module=own, audit_seed=audit_seed
        )
    return derive_requential(
        document.prior, document.chosen, message, data, delta, document.teacher, document.pool, pool=pool, module=own
    )


def _audit(
    certificate: Certificate,
    data: Data,
    module: nn.Module | None,
    base: Mapping[str, Tensor] | None,
    derived: Derived | Drawn,
    seed: int,
) -> dict[str, float] | None:
    """Draw anew, and refuse a certificate whose draws allow no risk as high as these do."""
    document = certificate.document
    if isinstance(document, StochasticDocument):
        trials = document.draws.count
    elif getattr(document, "sample", None) is not None:
        trials = document.sample.size
    else:
        return None
    found = _derive(certificate, data, module, base, None, seed).result
    budget = math.log(2.0 / _AUDIT_DELTA) / trials
    above, below = (
        kl_inverse_upper(derived.result.train_risk, budget),
        kl_inverse_lower(found.train_risk, budget),
    )
    if below > above:
        raise ArtefactError(
            f"the certificate's draws were chosen: they allow a risk of at most {above:.6g}, and {trials} draws of the "
            f"verifier's own one of at least {below:.6g}; by chance that happens less than once in a million times"
        )
    return {"seed": seed, "train_risk": found.train_risk, "bound": found.bound}


def check_ledger(document: Any, path: Path | str) -> None:
    """Raise an ArtefactError unless the certificate's share of delta stands in the ledger of its data set."""
    claim = document.delta
    if not Path(path).is_file():
        raise ArtefactError(f"{path} is no delta ledger; give the file that all certificates of these data draw from")
    entries = DeltaLedger(document.data.sha256, claim.total, path=path).entries
    before = 0.0
    for entry in entries:
        same = entry.purpose == claim.purpose and entry.delta == claim.delta
        if same and math.isclose(before, claim.spent_before, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            return
        before = math.fsum((before, entry.delta))
    raise ArtefactError(
        f"{path} holds no draw of {claim.delta} for {claim.purpose[:80]!r} after {claim.spent_before}; the certificate "
        "was not paid from this ledger"
    )


def check_claims(document: Any, derived: Derived | Drawn) -> None:
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
