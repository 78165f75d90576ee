"""The verb that simulates decoding: the shipped engine on a virtual clock, by a profile of a machine and its models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethought.app.arguments import parse, say
from forethought.core import files
from forethought.core.config import to_dict
from forethought.core.errors import ConfigError, RunExistsError
from forethought.decode.planning.planner import PlannerConfig
from forethought.decode.simulate import comparison, load_profile, profile_names
from forethought.decode.simulate.measuring import measure_profile, read_prompts

NUM_PROMPTS = 16


@dataclass(frozen=True)
class SimulateArguments:
    """Simulate plain decoding, classic drafting and SSD; or measure a profile of this machine with --measure."""

    profile: str = "h100-llama70b"
    """A profile of the library, or a JSON file that --measure wrote."""
    batch_size: int = 1
    """Sequences decoded together."""
    num_requests: int = 16
    """Texts decoded in each cell of the table; more make it steadier."""
    seed: int = 0
    """The same seed gives the same table."""
    planner: bool = False
    """Add what the planner makes when it chooses for itself."""
    measure: tuple[Path, Path] | None = None
    """Measure this target and this draft (two directories) instead of simulating."""
    prompts: Path | None = None
    """The prompts to measure with: one a line, or JSON lines with a field prompt (.gz is unpacked)."""
    out: Path | None = None
    """Where --measure writes the profile."""
    max_tokens: int = 128
    """How many tokens --measure decodes after each prompt."""
    num_threads: int = 1
    """Threads of the target while measuring."""
    json: bool = False
    """Print the result as one last line of JSON."""


def simulate_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought simulate` and return the table, or the profile that was measured.

    Raises:
        InputError: a flag, a profile, a model directory or a file of prompts cannot be used.
    """
    given = parse(SimulateArguments, arguments, verb="simulate")
    if given.measure is not None:
        return _measure(given, *given.measure)
    if min(given.batch_size, given.num_requests) < 1:
        raise ConfigError(
            f"batch_size {given.batch_size} and num_requests {given.num_requests} must be at least 1 each"
        )
    profile = load_profile(given.profile)
    result = comparison(
        profile,
        num_requests=given.num_requests,
        batch_size=given.batch_size,
        seed=given.seed,
        planner=PlannerConfig() if given.planner else None,
    )
    say(_shown(result), as_json=given.json)
    return {"kind": "simulate"} | result


def _measure(given: SimulateArguments, target: Path, draft: Path) -> dict[str, Any]:
    if given.prompts is None or given.out is None:
        raise ConfigError("--measure needs --prompts FILE to decode and --out FILE for the profile")
    if given.out.exists():
        raise RunExistsError(f"{given.out} exists; name another file or move it away")
    profile = measure_profile(
        target,
        draft,
        read_prompts(given.prompts, NUM_PROMPTS),
        name=given.out.stem,
        output_tokens=given.max_tokens,
        num_threads=given.num_threads,
    )
    files.write_json(given.out, to_dict(profile))
    result = comparison(profile, num_requests=NUM_PROMPTS)
    say(f"{_shown(result)}\nwrote {given.out}", as_json=given.json)
    return {"kind": "simulate-measure", "path": str(given.out), "measured": profile.published} | result


def _shown(result: dict[str, Any]) -> str:
    """The table for people, simulated figures beside those of others."""
    methods = [name for name in ("ar", "sd", "ssd", "auto") if name in result["rows"][0]]
    lines = [
        f"SIMULATED tokens a second, profile {result['profile']}, batch {result['batch_size']}",
        "  data set".ljust(18) + "".join(name.upper().rjust(18) for name in methods) + "   SSD/SD",
    ]
    for row in result["rows"]:
        known = result["published"].get(row["dataset"], {})
        cells = [f"{row[name]:.1f}" + (f" ({known[name]:.1f})" if name in known else "") for name in methods]
        figures = "".join(cell.rjust(18) for cell in cells)
        lines.append("  " + row["dataset"].ljust(16) + figures + f"{row['ssd_over_sd']:9.2f}")
    if result["published"]:
        lines.append(f"  in brackets: {result['provenance']}")
    if result["largest_difference"] is not None:
        lines.append(f"  largest difference from these {100 * result['largest_difference']:.1f} %")
    lines.append(f"profiles: {', '.join(profile_names())}")
    return "\n".join(lines)
