"""Making a certificate: derive it, draw its delta from the ledger of the data set, and fill in the document."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn

import forethought
from forethought.certify.certificate.data import as_data
from forethought.certify.certificate.derive import derive
from forethought.certify.certificate.document import Certificate, DataClaim, DeltaClaim, Document, MessageClaim
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
) -> Certificate:
    """Return the certificate of a message under a prior that was declared before the data were seen.

    `recipe` is the prior's with the choices made; `data` is (inputs, labels) or an array of tokens; `delta` is drawn
    from the data set's ledger (None: half of what is left) once for all certificates of a purpose and a prior.
    `reported` is printed and never verified.

    Raises:
        InputError: the recipe departs from the prior, the ledger is of other data or has too little left, or the
            message or the data are refused.
    """
    given = as_data(data)
    fingerprint = given.sha256
    if ledger.data_sha256 != fingerprint:
        raise InputError("the delta ledger is of another data set; open one with the fingerprint of these data")
    chosen = prior.find(recipe)
    # One draw covers every hypothesis of one prior at once; another prior needs a draw of its own.
    entry = ledger.draw(f"{purpose} under prior {prior.sha256[:16]}", delta)
    share = entry.delta
    spent = math.fsum(earlier.delta for earlier in ledger.entries[: ledger.entries.index(entry)])
    derived = derive(prior, chosen, message, given, share, module=module, base=base)
    document = Document(
        prior=prior,
        prior_sha256=prior.sha256,
        chosen=chosen,
        data=DataClaim(kind=given.kind, sha256=fingerprint, size=given.size),
        delta=DeltaClaim(purpose=entry.purpose, delta=share, total=ledger.total, spent_before=spent),
        bits=derived.bits,
        message=MessageClaim(bytes=len(message), sha256=hashlib.sha256(message).hexdigest()),
        weights=derived.weights,
        result=derived.result,
        assumptions=list(assumptions),
        reported=dict(reported or {}),
        version=forethought.__version__,
    )
    return Certificate(document, message)
