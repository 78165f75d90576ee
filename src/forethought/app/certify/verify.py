"""The verb `certify verify`: a certificate derived again from its files and the data, by the decoder alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from forethought.app.arguments import parse, say, table
from forethought.app.certify.subjects import read_data
from forethought.certify.verifying import verify


@dataclass(frozen=True)
class VerifyArguments:
    """Decode a certificate's message, rebuild its network, count its errors on the data, and compute its bound again.

    Every claim is held against what was derived, to 1e-12; the first that differs is named, and the status is 2.
    """

    certificate: Annotated[Path, tyro.conf.Positional]
    """The directory that holds certificate.json and message.bin, or certificate.json itself."""
    data: str
    """The very data it speaks of: digits, a folder of MNIST's files, a text, or a .npz or .npy file."""
    json: bool = False
    """Print what was verified as one last line on standard output."""


def verify_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought certify verify` and return what was verified.

    Raises:
        InputError: the certificate or the data are refused, or a claim does not hold.
    """
    given = parse(VerifyArguments, arguments, verb="certify verify")
    found = verify(given.certificate, read_data(given.data)).to_dict()
    rows = {
        "verified": "yes: message, weights, risk and bound follow from each other",
        "bound": f"{found['bound']:.6f}" + (" VACUOUS" if found["vacuous"] else ""),
        "training risk": found["train_risk"],
        "bits": found["bits"],
        "seconds": found["seconds"],
        "not verified": "; ".join(str(each) for each in found["not_verified"]),
    }
    say(f"{table(rows)}\n{found['statement']}", as_json=given.json)
    return {"kind": "certify.verify"} | found
