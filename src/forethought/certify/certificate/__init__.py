"""Certificate files: the data they speak of, what they claim, how the claim is derived, and how it is written."""

from __future__ import annotations

from forethought.certify.certificate.data import Examples, Tokens, as_data, load_data
from forethought.certify.certificate.derive import Derived, derive
from forethought.certify.certificate.document import (
    Certificate,
    DataClaim,
    DeltaClaim,
    Document,
    TokenResult,
    ZeroOneResult,
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
    "TokenResult",
    "Tokens",
    "ZeroOneResult",
    "as_data",
    "derive",
    "issue",
    "load_data",
    "message_of",
    "read_certificate",
]
