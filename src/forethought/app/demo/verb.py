"""The verb `demo`: its flags, and the figures that a person wants to see first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forethought.app.arguments import parse, say, table
from forethought.app.demo.halves import AS_SECOND, watch_first
from forethought.app.demo.jobs import PARTS, SKIPPED
from forethought.app.demo.run import do_jobs, run_demo
from forethought.app.demo.settings import DEMOS
from forethought.core.errors import unknown_name


@dataclass(frozen=True)
class DemoArguments:
    """The tour of all five rooms: language models, certificate, speculation, world model, control, one page."""

    quick: bool = False
    """Tiny models and short rides: a few minutes, and the figures mean little."""
    only: str = ",".join(PARTS)
    """Which parts to make, of: pretrain, decode, certify, world, control; what a part needs is made as well."""
    processes: Literal[1, 2] = 2
    """Parts that want one core each run side by side in two processes; what they make is the same."""
    out: Path = Path("runs/demo")
    """The directory to write."""
    exists: Literal["resume", "refuse", "replace"] = "resume"
    """What to do when the directory is already there."""
    json: bool = False
    """Print result.json as one last line on standard output."""


def demo_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought demo` and return its result.

    Raises:
        InputError: a flag or the directory cannot be used.
    """
    if arguments[:1] == [AS_SECOND]:
        _, names, out = arguments
        watch_first()
        do_jobs(Path(out), names.split(","))
        return {"kind": "demo.jobs", "jobs": names}
    given = parse(DemoArguments, arguments, verb="demo")
    parts = tuple(part.strip() for part in given.only.split(",") if part.strip())
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part of the demo", part, PARTS)
    recipe = "demo.quick" if given.quick else "demo"
    result = run_demo(
        DEMOS[recipe](), given.out, recipe=recipe, exists=given.exists, parts=parts, processes=given.processes
    )
    say(summary(result, given.out), as_json=given.json)
    return result


def summary(result: dict[str, Any], out: Path) -> str:
    """Return the figures of a tour that a person wants to see first."""
    rows: dict[str, object] = {}
    for name, tell in _ROWS.items():
        found = result.get(name)
        if found is not None:
            rows[name] = f"left out: {found[SKIPPED]}" if SKIPPED in found else tell(found)
    rows["report"] = out / "report.html"
    return "\n" + table(rows)


def _target(found: dict[str, Any]) -> str:
    counted = f" (5-gram Kneser-Ney {found['kneser_ney_5_loss']:.3f})" if "kneser_ney_5_loss" in found else ""
    return f"{found['parameters']:,} parameters, validation {found['validation_loss']:.3f} nats a token{counted}"


def _together(found: dict[str, Any]) -> str:
    single, student = (sum(found[name]) / len(found[name]) for name in ("single_losses", "student_losses"))
    return f"one model {single:.3f}, averaged {found['ensemble_loss']:.3f}, student {student:.3f} nats a token"


def _decode(found: dict[str, Any]) -> str:
    draft = found["methods"]["draft"]
    return (
        f"{draft['tokens_per_target_forward']:.2f} tokens a target forward, acceptance {draft['acceptance_rate']:.2f}, "
        f"same greedy tokens: {found['greedy_tokens_equal']}"
    )


def _world(found: dict[str, Any]) -> str:
    first, best = next(iter(found["near"]["policies"].items()))
    return f"{best['success']:.0%} of near goals reached ({first})"


def _control(found: dict[str, Any]) -> str:
    body = found["body"]
    after = "never noticed" if body["adapted"] is None else f"{body['adapted']['mean']:.1f} after adapting by itself"
    return f"return {body['as_learned']['mean']:.1f}, {body['changed']['mean']:.1f} on a changed body, {after}"


_ROWS = {
    "target": _target,
    "draft": _target,
    "together": _together,
    "certify": lambda found: f"at most {found['bound']:.3f} nats a character, verified in another process",
    "decode": _decode,
    "serve": lambda found: f"{found['usage']['completion_tokens']} tokens by HTTP, the same text: {found['equal']}",
    "world": _world,
    "control": _control,
}
