"""`forethought control adapt` and `distil`: new dynamics for a changed body, a fast policy for a slow planner."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from forethought.app.arguments import parse, say, table
from forethought.app.control.places import agent_at, model_at
from forethought.control import AdaptConfig, adapt, distil, export_onnx, preset
from forethought.core import files
from forethought.data.episodes.reading import read_episodes


@dataclass(frozen=True)
class AdaptArguments:
    """Fine-tune the dynamics of an agent, and nothing else, on play data of a changed body.

    Put the result to work with `forethought control run AGENT --dynamics OUT`.
    """

    agent: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """What `control train` made (or a dynamics model)."""
    play: Path
    """Episodes of the changed body, as `control collect` makes them; rewards are not needed."""
    out: Path
    """The run directory to write."""
    settings: Annotated[AdaptConfig, tyro.conf.arg(name="")]
    original: Path | None = None
    """Data of the old body, to report what was forgotten (and to mix in)."""
    exists: Literal["resume", "refuse", "replace"] = "refuse"
    """What to do when the run directory is already there."""
    json: bool = False
    """Print the result as one last line on standard output."""


def adapt_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought control adapt` and return errors before and after.

    Raises:
        InputError: a flag, the model, the data or the directory cannot be used.
    """
    default = AdaptArguments(agent=tyro.MISSING, play=tyro.MISSING, out=tyro.MISSING, settings=AdaptConfig())
    given = parse(AdaptArguments, arguments, verb="control adapt", default=default)
    dynamics = model_at(given.agent)
    original = None if given.original is None else read_episodes(given.original)
    report = adapt(
        dynamics,
        read_episodes(given.play),
        given.out,
        original=original,
        settings=given.settings,
        exists=given.exists,
    )
    result: dict[str, Any] = {
        "kind": "control.adapt",
        "parent": dynamics.fingerprint(),
        "fingerprint": report.dynamics.fingerprint(),
        **report.to_dict(),
    }
    files.write_json(given.out / "adaptation.json", result)
    say(f"{given.out}:\n{table(_error_rows(result))}", as_json=given.json)
    return result


@dataclass(frozen=True)
class DistilArguments:
    """Distil an agent's planner into a small reactive policy, and on request export it as ONNX."""

    agent: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """What `control train` made."""
    data: Path
    """Episodes whose situations are planned in."""
    out: Path
    """The run directory to write."""
    states: int = 20_000
    """About how many situations to plan in."""
    steps: int = 3000
    """Training steps."""
    onnx: bool = False
    """Write policy.onnx beside the model, checked with onnxruntime."""
    seed: int = 0
    exists: Literal["resume", "refuse", "replace"] = "refuse"
    """What to do when the run directory is already there."""
    json: bool = False
    """Print the result as one last line on standard output."""


def distil_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought control distil` and return how well the policy follows the planner.

    Raises:
        InputError: a flag, the agent, the data or the directory cannot be used.
    """
    given = parse(DistilArguments, arguments, verb="control distil")
    agent = agent_at(given.agent)
    settings = preset("cpu").policy
    model = replace(settings.model, history=agent.situation().history, horizon=1)
    settings = replace(settings, model=model, loop=replace(settings.loop, steps=given.steps))
    episodes = read_episodes(given.data)
    policy = distil(agent, episodes, given.out, settings, num_states=given.states, seed=given.seed, exists=given.exists)
    result = dict(files.read_json(given.out / "result.json", what="result"))
    if given.onnx:
        result["onnx"] = "policy.onnx"
        result["onnx_difference"] = export_onnx(policy, given.out / "policy.onnx")
    rows = {"states": result["states"], "error of the actions (standardised)": result["validation_loss"]}
    say(f"{given.out}:\n{table(rows)}", as_json=given.json)
    return result


def _error_rows(result: dict[str, Any]) -> dict[str, str]:
    rows: dict[str, str] = {}
    for body, title in (("new", "changed body"), ("old", "old body")):
        before, after = result[f"{body}_before"], result[f"{body}_after"]
        if before is None or after is None:
            continue
        for place, steps in ((0, 1), (-1, len(before["model"]))):
            rows[f"{title}, {steps} ahead"] = f"{before['model'][place]:.4f} before, {after['model'][place]:.4f} after"
    return rows
