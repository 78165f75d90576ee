"""Making a certificate: derive it, draw its delta from the ledger of the data set, and fill in the document."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn

import forethought
from forethought.certify.certificate.claims import DataClaim, DeltaClaim, MessageClaim
from forethought.certify.certificate.data import Data, as_data
from forethought.certify.certificate.derive import Derived, derive
from forethought.certify.certificate.document import Certificate, Document
from forethought.certify.codes.message import Segment, encode_message
from forethought.certify.decoder.recipe import Prior, Recipe
from forethought.certify.ledger import DeltaLedger
from forethought.core.config import to_dict
from forethought.core.errors import InputError


def message_of(recipe: Recipe, segments: Sequence[Segment], *, buffers: np.ndarray | None = None) -> bytes:
    """Return the message of a recipe: its canonical JSON, the segments in its order, and the buffers.

    Raises:
        InputError: a segment or the buffers cannot be coded.
    """
    return encode_message(segments, to_dict(recipe), buffers=buffers)


def issue(
    prior: Prior,
    recipe: Recipe,
    message: bytes,
    data: object,
    *,
    ledger: DeltaLedger,
    delta: float | None = None,
    purpose: str = "certificate",
    module: nn.Module | None = None,
    base: Mapping[str, Tensor] | None = None,
    assumptions: Sequence[str] = (),
    reported: Mapping[str, float | int | str | bool | None] | None = None,
    derived: Derived | None = None,
) -> Certificate:
    """Return the certificate of a message under a prior that was declared before the data were seen.

    `recipe` is the prior's with the choices made; `data` is (inputs, labels) or an array of tokens; `delta` is drawn
    from the data set's ledger (None: half of what is left) once for all certificates of a purpose and a prior.
    `reported` is printed and never verified. `derived` saves a second scoring: what `derive` made of these very things
    at this delta; with a `sample` in it, the certificate is of a risk counted on that sample.

    Raises:
        InputError: the recipe departs from the prior, the ledger is of other data or has too little left, or the
            message or the data are refused.
    """
    given = as_data(data)
    chosen = prior.find(recipe)
    drawn = draw_delta(ledger, given, purpose, prior.sha256, delta)
    sample = None if derived is None else derived.sample
    if derived is None or derived.delta != drawn.delta:
        derived = derive(prior, chosen, message, given, drawn.delta, module=module, base=base, sample=sample)
    document = Document(
        prior=prior,
        prior_sha256=prior.sha256,
        chosen=chosen,
        data=data_claim(given),
        delta=drawn,
        bits=derived.bits,
        message=message_claim(message),
        weights=derived.weights,
        result=derived.result,
        assumptions=list(assumptions),
        reported=dict(reported or {}),
        version=forethought.__version__,
        sample=sample,
    )
    return Certificate(document, message)


def draw_delta(ledger: DeltaLedger, data: Data, purpose: str, prior_sha256: str, delta: float | None) -> DeltaClaim:
    """Draw from the data set's ledger: one draw covers every hypothesis of one prior, another prior needs its own.

    Raises:
        InputError: the ledger is of other data or has too little left.
    """
    if ledger.data_sha256 != data.sha256:
        raise InputError("the delta ledger is of another data set; open one with the fingerprint of these data")
    entry = ledger.draw(f"{purpose} under prior {prior_sha256[:16]}", delta)
    spent = math.fsum(earlier.delta for earlier in ledger.entries[: ledger.entries.index(entry)])
    return DeltaClaim(purpose=entry.purpose, delta=entry.delta, total=ledger.total, spent_before=spent)


def data_claim(data: Data) -> DataClaim:
    """Return the claim about which data a certificate is of."""
    return DataClaim(kind=data.kind, sha256=data.sha256, size=data.size)


def message_claim(message: bytes) -> MessageClaim:
    """Return the claim about which file carries a message."""
    return MessageClaim(bytes=len(message), sha256=hashlib.sha256(message).hexdigest())
