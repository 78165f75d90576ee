"""The verbs `certify plan` and `certify holdout`: what bits buy, declarations, and what counts alone give."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forethought.app.arguments import parse, say, table
from forethought.certify import bit_budget, certify_given
from forethought.core import files
from forethought.core.config import to_dict
from forethought.core.errors import InputError, RunExistsError

_RISKS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class PlanArguments:
    """Say how many bits a message may have for a target, or write down a specification before its data are read."""

    n: int | None = None
    """Number of examples."""
    target: float | None = None
    """The error rate to be certified."""
    train_risk: float | None = None
    """The error rate expected on the training data; without it a table of several is shown."""
    delta: float = 0.05
    """Failure probability."""
    declare: Path | None = None
    """Write the declaration of --subject here: do it before the data are looked at, and give it to `certify run`."""
    subject: Literal["digits", "mnist", "text"] = "digits"
    """Whose specification to declare."""
    json: bool = False
    """Print the plan as one last line on standard output."""


def plan_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought certify plan` and return the plan.

    Raises:
        InputError: a number is out of range, or nothing was asked for.
        RunExistsError: the declaration is there already; declarations are never overwritten.
    """
    given = parse(PlanArguments, arguments, verb="certify plan")
    if given.declare is not None:
        return _declare(given.declare, given.subject, as_json=given.json)
    if given.n is None or given.target is None:
        raise InputError("certify plan needs --n and --target, or --declare FILE")
    risks = _RISKS if given.train_risk is None else (given.train_risk,)
    rows = [
        {"train_risk": risk, "bits": bit_budget(given.n, risk, given.target, given.delta)}
        for risk in risks
        if risk <= given.target
    ]
    if not rows:
        raise InputError(f"train_risk {risks[0]} is above the target {given.target}; no number of bits certifies that")
    shown = {f"at training risk {row['train_risk']:g}": _bits(row["bits"]) for row in rows}
    say(f"bits that still certify {given.target:g} with {given.n:,} examples:\n{table(shown)}", as_json=given.json)
    return {"kind": "certify.plan", "n": given.n, "target": given.target, "delta": given.delta, "budgets": rows}


@dataclass(frozen=True)
class HoldoutArguments:
    """Bound an error rate from counts: of data not used at all, or of a hypothesis of so many bits."""

    errors: int
    """Mistakes."""
    n: int
    """Independent examples on which they were counted."""
    bits: float = 0.0
    """Bits of the hypothesis, fixed by a prior before the data; 0 for data that were not used for anything."""
    delta: float = 0.05
    """Failure probability."""
    trivial: float = 1.0
    """Error of the trivial predictor, for the word vacuous."""
    json: bool = False
    """Print the bounds as one last line on standard output."""


def holdout_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought certify holdout` and return the bounds.

    Raises:
        InputError: a number is out of range.
    """
    given = parse(HoldoutArguments, arguments, verb="certify holdout")
    found = certify_given(given.errors, given.n, given.bits, given.delta, trivial=given.trivial)
    bounds = {name.replace("_", " "): f"{value:.6f}" for name, value in found.others.items()}
    say(f"{table(bounds)}\n{found.statement}", as_json=given.json)
    return {"kind": "certify.holdout"} | found.to_dict() | {"statement": found.statement}


def _declare(path: Path, subject: str, *, as_json: bool) -> dict[str, Any]:
    from forethought.app.certify.recipes import SPECS

    if path.exists():
        raise RunExistsError(f"{path} exists, and a declaration that can be rewritten declares nothing; name another")
    prior = SPECS[subject]().prior
    declared = {
        "kind": "certify.declaration",
        "subject": subject,
        "prior_sha256": prior.sha256,
        "choice_bits": prior.choice_bits,
        "prior": json.loads(json.dumps(to_dict(prior))),
    }
    files.write_json(path, declared)
    say(f"wrote {path}: prior {prior.sha256[:16]}, {prior.choice_bits:.2f} bits of choices", as_json=as_json)
    return declared


def _bits(bits: float) -> str:
    return f"{bits:,.0f} bits" if bits >= 0 else "none: not even a hypothesis fixed in advance"
