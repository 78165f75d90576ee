"""certificate.json: what is claimed, how it is paid, on which data, in one spelling that carries its own hash."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from forethought.certify.codes.message import MAX_MESSAGE_BYTES
from forethought.certify.decoder.recipe import Prior
from forethought.core import files
from forethought.core.config import config, from_dict, to_dict
from forethought.core.errors import ArtefactError, ConfigError

FORMAT = 1
DOCUMENT, MESSAGE = "certificate.json", "message.bin"
MAX_DOCUMENT_BYTES = 4 << 20

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(max_length=4000)]


@config
class DataClaim:
    """Which data: their kind, fingerprint and number."""

    kind: Literal["examples", "tokens"]
    sha256: Hash
    size: Annotated[int, Field(ge=1, le=1 << 53)]


@config
class DeltaClaim:
    """The share of the data set's failure probability that this certificate took, and what others had taken before."""

    purpose: Text
    delta: Probability
    total: Probability
    spent_before: NotNegative = 0.0

    def __post_init__(self) -> None:
        if math.fsum((self.delta, self.spent_before)) > self.total * (1.0 + 1e-12):
            raise ConfigError(f"delta {self.delta} after {self.spent_before} exceeds the total {self.total}")


@config
class BitClaim:
    """The ledger in bits."""

    symbols: NotNegative
    codebook: NotNegative
    choices: NotNegative
    buffers: NotNegative
    total: NotNegative


@config
class MessageClaim:
    """The file that carries the message."""

    bytes: Annotated[int, Field(ge=1, le=MAX_MESSAGE_BYTES)]
    sha256: Hash


@config
class WeightClaim:
    """A fingerprint of the weights that tolerates the last digits: their number, sum of sizes, and signed sums."""

    count: Annotated[int, Field(ge=1)]
    absolute_sum: NotNegative
    probes: Annotated[tuple[float, ...], Field(min_length=8, max_length=8)]


@config
class ZeroOneResult:
    """The risk of a classifier and its bound; `bounds` are others for comparison, `bound` is the exact binomial one."""

    errors: Count
    n: Annotated[int, Field(ge=1, le=1 << 53)]
    train_risk: NotNegative
    bound: NotNegative
    trivial: NotNegative
    bounds: dict[str, float]
    loss: Literal["zero_one"] = "zero_one"


@config
class TokenResult:
    """The loss in nats a token of the model mixed with the uniform law, and its bound: the exact Freedman form."""

    n: Annotated[int, Field(ge=1, le=1 << 53)]
    train_risk: NotNegative
    bound: NotNegative
    trivial: NotNegative
    smoothing: Probability
    loss_range: NotNegative
    mean_square: NotNegative
    bounds: dict[str, float]
    loss: Literal["token"] = "token"


@config
class Document:
    """Everything in certificate.json but its own hash. `reported` is what its maker adds and nobody re-derives."""

    prior: Prior
    prior_sha256: Hash
    chosen: dict[str, int]
    data: DataClaim
    delta: DeltaClaim
    bits: BitClaim
    message: MessageClaim
    weights: WeightClaim
    result: Annotated[ZeroOneResult | TokenResult, Field(discriminator="loss")]
    assumptions: Annotated[list[Text], Field(max_length=256)] = field(default_factory=list)
    reported: Annotated[dict[str, float | int | str | bool | None], Field(max_length=256)] = field(default_factory=dict)
    version: str = "0"


@dataclass(frozen=True)
class Certificate:
    """A document with the message that it speaks of."""

    document: Document
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
        return {"format": FORMAT, **to_dict(self.document)}

    def save(self, directory: Path | str, *, replace: bool = False) -> Path:
        """Publish certificate.json and message.bin in a directory by one rename, and return it.

        Raises:
            RunExistsError: the directory exists and replace is False.
            StorageError: the disk refused.
        """
        files.publish(directory, {DOCUMENT: document_bytes(self.to_dict()), MESSAGE: self.message}, replace=replace)
        return Path(directory)


def statement_of(document: Document) -> str:
    """Return the guarantee of a document in words, with what it does not say."""
    result, delta = document.result, document.delta
    sure = (
        f"With probability {1.0 - delta.total:.6g} over the draw of the data, for this certificate and all others of "
        "its ledger,"
    )
    if isinstance(result, ZeroOneResult):
        what = (
            f"the error of the decoded network on fresh examples of the same law is at most {result.bound:.4%} "
            f"(it is {result.train_risk:.4%} on the {result.n} independent examples)."
        )
    else:
        what = (
            "the mean loss of the decoded, smoothed model on the next token, given the contexts that stood in the data,"
            f" is at most {result.bound:.4f} nats (it is {result.train_risk:.4f} on the {result.n} tokens)."
        )
    vacuous = result.bound >= result.trivial
    worth = (
        f" This is VACUOUS: the trivial predictor reaches {result.trivial:.4g}."
        if vacuous
        else f" The trivial predictor has {result.trivial:.4g}."
    )
    limits = (
        " It says nothing of other laws, other measures, single inputs, or the network before compression, and it "
        "holds only if the prior was declared without the data."
    )
    return f"{sure} {what}{worth}{limits}"


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


def parse_document(data: bytes, *, source: str) -> Document:
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
    try:
        document = from_dict(Document, values, source=source)
        # By bytes: 1, 1.0 and true are equal to Python and three different claims to other readers.
        same = document_bytes({"format": FORMAT, **to_dict(document)}) == data and prior_matches(document)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ArtefactError(f"{source} is no certificate: {error}") from error
    if not same:
        raise ArtefactError(f"{source} leaves fields out, or its prior is not the one that its hash stands for")
    return document


def prior_matches(document: Document) -> bool:
    """Say whether the prior of a document is the one of its hash."""
    return document.prior.sha256 == document.prior_sha256


def _read(path: Path, limit: int) -> bytes:
    try:
        return files.read_bounded(path, what="certificate file", limit=limit)
    except OSError as error:
        raise ArtefactError(f"certificate file {path} cannot be read: {error.strerror or error}") from error


def _spell(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, sort_keys=True, indent=2, allow_nan=False) + "\n").encode("ascii")
