"""Certificate files: the data they speak of, what they claim, how the claim is derived, and how it is written."""

from __future__ import annotations

from forethought.certify.certificate.claims import DataClaim, DeltaClaim, TokenResult, ZeroOneResult
from forethought.certify.certificate.data import Examples, Tokens, as_data, groups_of_copies, load_data
from forethought.certify.certificate.derive import Derived, derive
from forethought.certify.certificate.document import (
    Certificate,
    Document,
    RequentialDocument,
    StochasticDocument,
    read_certificate,
)
from forethought.certify.certificate.issue import issue, message_of

__all__ = [
    "Certificate",
    "DataClaim",
    "DeltaClaim",
    "Derived",
    "Document",
    "Examples",
    "RequentialDocument",
    "StochasticDocument",
    "TokenResult",
    "Tokens",
    "ZeroOneResult",
    "as_data",
    "derive",
    "groups_of_copies",
    "issue",
    "load_data",
    "message_of",
    "read_certificate",
]
