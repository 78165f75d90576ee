"""The verb that joins ladders: one set of laws and multipliers from the rows of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from forethought.app.arguments import parse, say
from forethought.app.ladder import efficiency_lines
from forethought.core.artefact import read_kind
from forethought.core.errors import ConfigError
from forethought.core.run import open_run
from forethought.pretrain.study import laws_of


@dataclass(frozen=True)
class EfficiencyArguments:
    """Fit the laws of one or more finished ladders on one corpus and say how much data each recipe is worth."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Runs of `pretrain ladder`."""
    seed: int = 0
    """Of the simulated data sets behind the intervals."""
    json: bool = False
    """Print the laws as one last line on standard output."""


def efficiency_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought pretrain efficiency` and return the laws.

    Raises:
        InputError: a directory is no finished ladder, or the ladders stand on different corpora.
    """
    given = parse(EfficiencyArguments, arguments, verb="pretrain efficiency")
    rows = ladder_rows(given.runs)
    laws = laws_of(rows, seed=given.seed)
    say("\n".join([*law_lines(laws), *efficiency_lines(laws)]), as_json=given.json)
    return {"kind": "pretrain.efficiency", "rows": len(rows), "laws": laws}


def ladder_rows(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the rows of finished ladders, of equal rungs the last one.

    Raises:
        ConfigError: a directory is no finished ladder, or the ladders stand on different corpora.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    identities: dict[str, Path] = {}
    for run in runs:
        result = (open_run(run)["result"] or {}) if read_kind(run) == "run" else {}
        if result.get("kind") != "pretrain.ladder":
            raise ConfigError(f"{run} is no finished ladder; give a run of `forethought pretrain ladder`")
        identities[result["corpus_identity"]] = run
        rows |= {(row["recipe"], row["shape"], row["data"]): row for row in result["rows"]}
    if len(identities) != 1:
        places = ", ".join(f"{run} ({identity[:12]})" for identity, run in identities.items())
        raise ConfigError(f"losses on different corpora do not compare: {places}; give ladders on one corpus")
    return list(rows.values())


def law_lines(laws: dict[str, Any]) -> list[str]:
    """Return the asymptotes of the laws, or why there are none, one line each."""
    lines: list[str] = []
    for data, recipes in laws["over_size"].items():
        for recipe, found in recipes.items():
            where = "interior" if found["interior"] else "monotone" if found["monotone"] else "at an end, not monotone"
            best = f"best size {found['best_parameters']:,.0f} ({where})"
            lines.append(f"  {recipe} over size at {int(data):,} tokens: {best}; {_limit(found['law'])}")
    lines += [f"  joint limit at {int(data):,} tokens: {_limit(law)}" for data, law in laws["joint"].items()]
    lines += [f"  {recipe} over data: {_limit(law)}" for recipe, law in laws["over_data"].items()]
    if any(laws["joint"]):
        lines.append(f"  members, then size, then data: {_limit(laws['joint_over_data'])}")
    return lines


def _limit(law: dict[str, Any]) -> str:
    if law["asymptote"] is None:
        return f"asymptote not identified: {law['reason'][:160]}"
    low, high = law["intervals"]["asymptote"]
    return f"limit {law['asymptote']:.4f} (95 % {low:.4f} to {high:.4f})"
