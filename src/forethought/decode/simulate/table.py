"""The table of a profile: plain decoding, classic drafting and SSD on each data set, beside what was published."""

from __future__ import annotations

from typing import Any

from forethought.decode.planning.model_of_speed import Plan
from forethought.decode.planning.planner import PlannerConfig
from forethought.decode.simulate.behaviour import Behaviour
from forethought.decode.simulate.profile import Profile
from forethought.decode.simulate.runner import Simulated, simulate


def comparison(
    profile: Profile,
    *,
    num_requests: int = 4,
    batch_size: int = 1,
    seed: int = 0,
    planner: PlannerConfig | None = None,
) -> dict[str, Any]:
    """Return the simulated table: `rows` of tokens a second by data set, `details`, and the published figures.

    `largest_difference` is the largest relative one between a simulated figure and its published one. With `planner`
    a row has also what the planner makes, as `auto`.

    Raises:
        InputError: a number is out of range.
    """
    rows: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    for name, behaviour in profile.datasets.items():
        policies: dict[str, Plan | PlannerConfig] = {
            "ar": Plan(),
            "sd": profile.classic.plan("draft"),
            "ssd": profile.ssd.plan("ssd"),
        }
        if planner is not None:
            policies["auto"] = planner
        done = {
            method: _run(profile, behaviour, policy, num_requests, batch_size, seed)
            for method, policy in policies.items()
        }
        row: dict[str, Any] = {method: found.tokens_per_second for method, found in done.items()}
        rows.append(
            {"dataset": name, **row, "ssd_over_sd": row["ssd"] / row["sd"], "ssd_over_ar": row["ssd"] / row["ar"]}
        )
        details[name] = {method: found.to_dict() for method, found in done.items()}
        if planner is not None:
            details[name]["auto"]["planner"] = done["auto"].report
    # What was published was decoded one text at a time.
    published = profile.published if batch_size == 1 else {}
    return {
        "simulated": True,
        "profile": profile.name,
        "note": profile.note,
        "batch_size": batch_size,
        "rows": rows,
        "published": published,
        "provenance": profile.provenance,
        "largest_difference": largest_difference(rows, published),
        "details": details,
    }


def largest_difference(rows: list[dict[str, Any]], published: dict[str, dict[str, float]]) -> float | None:
    """Return the largest |simulated / published - 1|, or None where nothing was published."""
    differences = [
        abs(row[method] / figure - 1.0)
        for row in rows
        for method, figure in published.get(row["dataset"], {}).items()
        if method in row
    ]
    return max(differences, default=None)


def _run(
    profile: Profile, behaviour: Behaviour, policy: Plan | PlannerConfig, num_requests: int, batch_size: int, seed: int
) -> Simulated:
    # Plain decoding has no chance in it, so one text a sequence says all.
    count = batch_size if policy == Plan() else max(num_requests, batch_size)
    return simulate(
        profile.costs,
        behaviour,
        policy,
        batch_size=batch_size,
        num_requests=count,
        prompt_tokens=profile.prompt_tokens,
        output_tokens=profile.output_tokens,
        seed=seed,
        draws="stratified" if isinstance(policy, Plan) else "independent",
        jitter=profile.jitter,
    )
