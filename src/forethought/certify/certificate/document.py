"""certificate.json: what is claimed, how it is paid, on which data, in one spelling that carries its own hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from forethought.certify.certificate.claims import (
    BitClaim,
    DataClaim,
    DeltaClaim,
    DivergenceClaim,
    DrawsClaim,
    GroupedResult,
    Hash,
    MessageClaim,
    PoolClaim,
    RequentialResult,
    SampleClaim,
    SampledResult,
    StochasticResult,
    TeacherClaim,
    Text,
    TokenResult,
    WeightClaim,
    ZeroOneResult,
)
from forethought.certify.certificate.statements import statement_of
from forethought.certify.decoder.priors import GaussianPrior, StudentPrior
from forethought.certify.decoder.recipe import Prior
from forethought.core import files
from forethought.core.config import config, from_dict, to_dict
from forethought.core.errors import ArtefactError

FORMAT = 1
DOCUMENT, MESSAGE = "certificate.json", "message.bin"
MAX_DOCUMENT_BYTES = 4 << 20
_CODE = "code"

Assumptions = Annotated[list[Text], Field(max_length=256)]
Reported = Annotated[dict[str, float | int | str | bool | None], Field(max_length=256)]
CodeResult = Annotated[ZeroOneResult | TokenResult | GroupedResult | SampledResult, Field(discriminator="loss")]


@config
class Document:
    """A network that a message codes: all in certificate.json but its own hash.

    `reported` is what its maker adds and nobody re-derives; `sample` is there where the risk was not counted on all.
    """

    prior: Prior
    prior_sha256: Hash
    chosen: dict[str, int]
    data: DataClaim
    delta: DeltaClaim
    bits: BitClaim
    message: MessageClaim
    weights: WeightClaim
    result: CodeResult
    assumptions: Assumptions = field(default_factory=list)
    reported: Reported = field(default_factory=dict)
    version: str = "0"
    sample: SampleClaim | None = None
    kind: Literal["code"] = "code"


@config
class StochasticDocument:
    """A Gaussian over weights, with the draws that its risk was found by; the message is the posterior."""

    prior: GaussianPrior
    prior_sha256: Hash
    chosen: dict[str, int]
    data: DataClaim
    delta: DeltaClaim
    bits: DivergenceClaim
    message: MessageClaim
    weights: WeightClaim
    draws: DrawsClaim
    result: StochasticResult
    assumptions: Assumptions = field(default_factory=list)
    reported: Reported = field(default_factory=dict)
    version: str = "0"
    kind: Literal["stochastic"] = "stochastic"


@config
class RequentialDocument:
    """One run of a teacher and a student; the message is the labels that were drawn, and the student. EXPERIMENTAL."""

    prior: StudentPrior
    prior_sha256: Hash
    chosen: dict[str, int]
    data: DataClaim
    pool: PoolClaim
    delta: DeltaClaim
    bits: DivergenceClaim
    message: MessageClaim
    weights: WeightClaim
    teacher: TeacherClaim
    result: RequentialResult
    assumptions: Assumptions = field(default_factory=list)
    reported: Reported = field(default_factory=dict)
    version: str = "0"
    kind: Literal["requential"] = "requential"


AnyDocument = Document | StochasticDocument | RequentialDocument
KINDS: dict[str, type[Document] | type[StochasticDocument] | type[RequentialDocument]] = {
    "code": Document,
    "stochastic": StochasticDocument,
    "requential": RequentialDocument,
}


@dataclass(frozen=True)
class Certificate:
    """A document with the message that it speaks of."""

    document: Any
    message: bytes

    @property
    def bound(self) -> float:
        """The certified upper bound on the risk."""
        return self.document.result.bound

    @property
    def vacuous(self) -> bool:
        """Whether the bound is no better than the trivial predictor's risk."""
        return self.bound >= self.document.result.trivial

    @property
    def statement(self) -> str:
        """What is guaranteed, in words, and what is not."""
        return statement_of(self.document)

    def to_dict(self) -> dict[str, Any]:
        """Return the document as JSON values."""
        return values_of(self.document)

    def save(self, directory: Path | str, *, replace: bool = False) -> Path:
        """Publish certificate.json and message.bin in a directory by one rename, and return it.

        Raises:
            RunExistsError: the directory exists and replace is False.
            StorageError: the disk refused.
        """
        files.publish(directory, {DOCUMENT: document_bytes(self.to_dict()), MESSAGE: self.message}, replace=replace)
        return Path(directory)


def values_of(document: AnyDocument) -> dict[str, Any]:
    """Return a document as JSON values; a code is the plain kind, and what it does not need is left out."""
    values = {"format": FORMAT, **to_dict(document)}
    if values["kind"] == _CODE:
        del values["kind"]
        if values["sample"] is None:
            del values["sample"]
    return values


def document_bytes(values: dict[str, Any]) -> bytes:
    """Return the one spelling of a document: sorted, indented, ASCII, with the hash of the rest as `sha256`."""
    bare = {name: value for name, value in values.items() if name != "sha256"}
    return _spell({**bare, "sha256": hashlib.sha256(_spell(bare)).hexdigest()})


def read_certificate(path: Path | str) -> Certificate:
    """Read a certificate from its directory or its certificate.json; memory is bounded, and no byte goes unchecked.

    Raises:
        ArtefactError: a file is missing, no regular file, too large, damaged, or not what the document says.
    """
    path = Path(path)
    place = path / DOCUMENT if path.is_dir() else path
    document = parse_document(_read(place, MAX_DOCUMENT_BYTES), source=str(place))
    claim = document.message
    message = _read(place.parent / MESSAGE, claim.bytes)
    if len(message) != claim.bytes or hashlib.sha256(message).hexdigest() != claim.sha256:
        raise ArtefactError(
            f"{place.parent / MESSAGE} is not the message that {place} speaks of; it is damaged or swapped"
        )
    return Certificate(document, message)


def parse_document(data: bytes, *, source: str) -> AnyDocument:
    """Return the document of certificate.json's bytes.

    Raises:
        ArtefactError: the bytes are not the one spelling of a document of this format with its own hash.
    """
    try:
        values = json.loads(data)
        intact = isinstance(values, dict) and document_bytes(values) == data
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtefactError(f"{source} is no certificate ({type(error).__name__}); it is damaged or forged") from error
    if not intact:
        raise ArtefactError(f"{source} is damaged or forged: its bytes are not those that its own hash stands for")
    if values.pop("format", None) != FORMAT:
        raise ArtefactError(f"{source} is of another format; this version reads format {FORMAT}")
    del values["sha256"]
    kind = values.get("kind", _CODE)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ArtefactError(f"{source} is a certificate of an unknown kind; this version reads {', '.join(KINDS)}")
    try:
        document = from_dict(KINDS[kind], values, source=source)
        # By bytes: 1, 1.0 and true are equal to Python and three different claims to other readers.
        same = document_bytes(values_of(document)) == data and prior_matches(document)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ArtefactError(f"{source} is no certificate: {error}") from error
    if not same:
        raise ArtefactError(f"{source} leaves fields out, or its prior is not the one that its hash stands for")
    return document


def prior_matches(document: AnyDocument) -> bool:
    """Say whether the prior of a document is the one of its hash."""
    return document.prior.sha256 == document.prior_sha256


def _read(path: Path, limit: int) -> bytes:
    try:
        return files.read_bounded(path, what="certificate file", limit=limit)
    except OSError as error:
        raise ArtefactError(f"certificate file {path} cannot be read: {error.strerror or error}") from error


def _spell(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, sort_keys=True, indent=2, allow_nan=False) + "\n").encode("ascii")
