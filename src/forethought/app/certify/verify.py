"""The verb `certify verify`: a certificate derived again from its files and the data, by the decoder alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from forethought.app.arguments import parse, say, table
from forethought.app.certify.subjects import read_data
from forethought.certify.certificate.data import Tokens, load_data
from forethought.certify.verifying import verify
from forethought.core.errors import DataError


@dataclass(frozen=True)
class VerifyArguments:
    """Decode a certificate's message, rebuild its network, count its errors on the data, and compute its bound again.

    Every claim is held against what was derived, to 1e-12; the first that differs is named, and the status is 2.
    """

    certificate: Annotated[Path, tyro.conf.Positional]
    """The directory that holds certificate.json and message.bin, or certificate.json itself."""
    data: str
    """The very data it speaks of: digits, a folder of MNIST's files, a text, or a .npz or .npy file."""
    pool: Path | None = None
    """Of a requential certificate, a .npy of its unlabelled inputs, unless they are the head of the data."""
    ledger: Path | None = None
    """The delta ledger of the data set: the certificate's share must stand in it."""
    audit_seed: int | None = None
    """A number of your own: where the risk was found through random draws, draw anew and refuse too lucky ones."""
    json: bool = False
    """Print what was verified as one last line on standard output."""


def verify_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought certify verify` and return what was verified.

    Raises:
        InputError: the certificate or the data are refused, or a claim does not hold.
    """
    given = parse(VerifyArguments, arguments, verb="certify verify")
    pool = None if given.pool is None else read_pool(given.pool)
    data, certificate = read_data(given.data), given.certificate
    found = verify(certificate, data, pool=pool, audit_seed=given.audit_seed, ledger=given.ledger).to_dict()
    rows = {
        "verified": "yes: message, weights, risk and bound follow from each other",
        "bound": f"{found['bound']:.6f}" + (" VACUOUS" if found["vacuous"] else ""),
        "training risk": found["train_risk"],
        "bits": found["bits"],
        **({} if found["audit"] is None else {"bound by your own draws": f"{found['audit']['bound']:.6f}"}),
        "seconds": found["seconds"],
        "not verified": "; ".join(str(each) for each in found["not_verified"]),
    }
    say(f"{table(rows)}\n{found['statement']}", as_json=given.json)
    return {"kind": "certify.verify"} | found


def read_pool(path: Path) -> np.ndarray:
    """Return the unlabelled inputs of a requential certificate from a .npy file.

    Raises:
        DataError: the file is missing or of another kind.
    """
    found = load_data(path)
    if not isinstance(found, Tokens):
        raise DataError(f"{path} is no .npy file of unlabelled inputs; give one array of rows")
    return found.tokens
