"""Generalisation certificates that another machine can check: bounds, ledgers, codes, files and their verification.

Names are imported on first use: a process that only verifies a certificate never imports training code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forethought.certify.bounds import (
        bit_budget,
        catoni,
        kl_inverse,
        occam_binomial,
    )
    from forethought.certify.certificate import Certificate, Examples, Tokens, issue, load_data, read_certificate
    from forethought.certify.decoder import Prior, Recipe
    from forethought.certify.given import GivenCertificate, certify_given, certify_holdout
    from forethought.certify.ledger import BitLedger, DeltaLedger
    from forethought.certify.tokens import certify_tokens
    from forethought.certify.training import CertifiedModel, CertifySpec, certify
    from forethought.certify.verifying import Verification, verify

__all__ = [
    "BitLedger",
    "Certificate",
    "CertifiedModel",
    "CertifySpec",
    "DeltaLedger",
    "Examples",
    "GivenCertificate",
    "Prior",
    "Recipe",
    "Tokens",
    "Verification",
    "bit_budget",
    "catoni",
    "certify",
    "certify_given",
    "certify_holdout",
    "certify_tokens",
    "issue",
    "kl_inverse",
    "load_data",
    "occam_binomial",
    "read_certificate",
    "verify",
]

# A module never has the name of a function of the face: importing the module would hide the function.
_HOMES = {
    "bounds": ("bit_budget", "catoni", "kl_inverse", "occam_binomial"),
    "certificate": ("Certificate", "Examples", "Tokens", "issue", "load_data", "read_certificate"),
    "decoder": ("Prior", "Recipe"),
    "given": ("GivenCertificate", "certify_given", "certify_holdout"),
    "ledger": ("BitLedger", "DeltaLedger"),
    "tokens": ("certify_tokens",),
    "training": ("CertifiedModel", "CertifySpec", "certify"),
    "verifying": ("Verification", "verify"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
