"""Two rooms end to end over training seeds: `forethought world demo` whole, and the same command with lambda = 0.

    python benchmarks/studies/world_tworooms.py [--work DIR] [--quick --out FILE]

A cell is one demo: collect, train, reach near and far goals of held-out episodes, probe, be surprised. The seed draws
the data, the weights, the pairs and every plan anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from world_common import Row, open_study

from forethought.app.world.demo import WorldDemoConfig, full, quick, run_demo
from forethought.core.errors import TrainingError
from forethought.core.run import open_run
from forethought.stats import wilson

NAME = "world_tworooms"
POLICIES = ("subgoals", "plan", "inverse", "no-op", "random")


@dataclass(frozen=True)
class Settings:
    """The training seeds, and which demo."""

    seeds: tuple[int, ...] = (0, 1, 2)
    demo: str = "world.demo"


def settings(quickly: bool) -> Settings:
    """Return the sizes of the study."""
    return Settings(seeds=(0,), demo="world.demo.quick") if quickly else Settings()


def main() -> None:
    """Run every demo that is not there yet, and summarise."""
    torch.set_num_threads(1)
    study, work, chosen, _ = open_study(NAME, main.__doc__ or "", settings)
    recipe = full() if chosen.demo == "world.demo" else quick()
    for seed in chosen.seeds:
        config = seeded(recipe, seed)
        study.cell({"cell": "demo", "seed": seed}, lambda config=config: demo(config, recipe, work, chosen.demo))
        study.write(summary(study.rows))
    for seed in chosen.seeds:
        config = seeded(recipe, seed, strength=0.0)
        study.cell(
            {"cell": "collapse", "seed": seed}, lambda config=config: collapse(config, recipe, work, chosen.demo)
        )
        study.write(summary(study.rows))
    print(f"{study.path}: {len(study.rows)} rows")


def seeded(recipe: WorldDemoConfig, seed: int, strength: float | None = None) -> WorldDemoConfig:
    """Return the demo's settings as its flags --seed and --strength make them."""
    train = replace(recipe.train, seed=seed)
    if strength is not None:
        train = replace(train, regulariser=replace(train.regulariser, strength=strength))
    return replace(recipe, train=train, collect=replace(recipe.collect, seed=seed))


def demo(config: WorldDemoConfig, recipe: WorldDemoConfig, work: Path, name: str) -> Row:
    """Run one demo and return the figures that a reader would quote."""
    result = run_demo(config, work / f"seed-{config.train.seed}", recipe=name, recipe_config=recipe)
    row: Row = {"seconds": result.get("seconds"), "frames_seen": result["fit"]["frames_seen"]}
    row |= {key: result["fit"][key] for key in ("parameters", "validation_loss", "copy_ratio", "effective_rank")}
    for protocol in ("near", "far"):
        found = result[protocol]
        row[protocol] = {key: found[key] for key in ("offset", "budget", "pairs", "trivial_pairs", "drawn_pairs")}
        row[protocol] |= {arm: _rate(each) for arm, each in found["policies"].items()}
    row["probe"] = {key: each["linear"] for key, each in result["probe"]["quantities"].items()}
    surprise = result["surprise"]
    row["auroc"] = {key: [each["auroc"], *each["auroc_interval"]] for key, each in surprise["perturbations"].items()}
    row["false_flags"] = [surprise["false_flag_rate"], *surprise["false_flag_interval"]]
    return row


def _rate(each: Mapping[str, Any]) -> Row:
    return {
        "success": [each["success"], *each["success_interval"]],
        "by_seed": each["success_by_seed"],
        "final": each["final_success"],
    }


def collapse(config: WorldDemoConfig, recipe: WorldDemoConfig, work: Path, name: str) -> Row:
    """Run one demo without SIGReg and return what the alarm said; a run that did not collapse is a row too."""
    out = work / f"collapse-{config.train.seed}"
    try:
        run_demo(config, out, recipe=name, recipe_config=recipe)
    except TrainingError:
        result = open_run(out / "train")["result"] or {}
        names = ("collapsed", "step", "spread", "effective_rank", "sigreg_over_floor", "copy_ratio")
        return {**{key: result.get(key) for key in names}, "page": (out / "report.html").exists()}
    return {"collapsed": None}


def summary(rows: list[Row]) -> Mapping[str, Any]:
    """Return success over the pairs of all training seeds with intervals, and the worst of the other figures."""
    demos = [row for row in rows if row["cell"] == "demo"]
    if not demos:
        return {}
    found: dict[str, Any] = {"training_seeds": len(demos)}
    for protocol in ("near", "far"):
        for arm in POLICIES:
            parts = [
                (row[protocol]["pairs"], row[protocol][arm]["success"][0]) for row in demos if arm in row[protocol]
            ]
            if parts:
                total = sum(pairs for pairs, _ in parts)
                rate = wilson(round(sum(pairs * share for pairs, share in parts)), total)
                found[f"{protocol}_{arm}"] = [rate.estimate, rate.low, rate.high]
        found[f"{protocol}_pairs"] = sum(row[protocol]["pairs"] for row in demos)
    found["position_r_lowest"] = min(row["probe"][axis]["r"] for row in demos for axis in ("x", "y"))
    found["teleport_auroc_lowest"] = min(row["auroc"]["teleport"][0] for row in demos)
    found["false_flags_at_5_percent"] = [row["false_flags"] for row in demos]
    found["cpu_seconds_a_demo"] = [row["cpu_seconds"] for row in demos]
    found["collapsed"] = [row["collapsed"] is not None for row in rows if row["cell"] == "collapse"]
    return found


if __name__ == "__main__":
    main()
