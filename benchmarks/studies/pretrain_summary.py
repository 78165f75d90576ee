"""What the stages of pretrain_ladder.py come to: a table of rungs, and an answer with an interval to each question."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from forethought.pretrain.study import laws_of
from forethought.stats import mean_interval

Row = Mapping[str, Any]
Z = 1.96


def summarise(found: Sequence[Row], stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the rungs in order and what they say, with the results of the stages that distil."""
    rows = sorted(found, key=lambda row: (row["data"], row["parameters"], row["recipe"]))
    recipes = sorted({str(row["recipe"]) for row in rows})
    noise = {recipe: pooled_sd([row for row in rows if row["recipe"] == recipe]) for recipe in recipes}
    laws = laws_of(rows)
    summary: dict[str, Any] = {
        "noise_floor": {
            "seed_sd_by_recipe": noise,
            "rungs": len(rows),
            "seeds": min(len(r["seed_losses"]) for r in rows),
        },
        "certified": {recipe: certified(rows, recipe) for recipe in ("standard", "regularised", "ensemble")},
        "over_size": {str(data): over_size(rows, data, noise) for data in budgets(rows)},
        "ensembles": [each for row in rows if row["recipe"] == "ensemble" for each in ensemble(row, rows, noise)],
        "laws": laws,
    }
    summary["distillation"] = [result for name, result in stages.items() if name.startswith("distil")]
    summary["self_distillation"] = [result for name, result in stages.items() if name.startswith("self")]
    return {"rows": rows, "summary": summary}


def budgets(rows: Sequence[Row]) -> list[int]:
    """Return the data budgets, fewest tokens first."""
    return sorted({int(row["data"]) for row in rows})


def pooled_sd(rows: Sequence[Row]) -> float:
    """Return the sd of one run over seeds, pooled over a recipe's rungs: steadier than three seeds' own."""
    squares = sum(statistics.variance(row["seed_losses"]) * (len(row["seed_losses"]) - 1) for row in rows)
    return math.sqrt(squares / sum(len(row["seed_losses"]) - 1 for row in rows))


def certified(rows: Sequence[Row], recipe: str) -> dict[str, int]:
    """Return how many tuned points of a recipe are certified, of how many."""
    own = [row for row in rows if row["recipe"] == recipe]
    return {"certified": sum(bool(row["certified"]) for row in own), "points": len(own)}


def over_size(rows: Sequence[Row], data: int, noise: Mapping[str, float]) -> dict[str, Any]:
    """Return each recipe's losses by size, and by how much each size is better than the one before (95 %)."""
    found: dict[str, Any] = {}
    for recipe in ("standard", "regularised"):
        own = [row for row in rows if row["recipe"] == recipe and row["data"] == data]
        if len(own) < 2:
            continue
        losses = [float(row["loss"]) for row in own]
        half = Z * noise[recipe] * math.sqrt(sum(1 / len(row["seed_losses"]) for row in own[:2]))
        best = losses.index(min(losses))
        found[recipe] = {
            "parameters": [row["parameters"] for row in own],
            "losses": losses,
            "gains": [{"nats": a - b, "interval": [a - b - half, a - b + half]} for a, b in itertools.pairwise(losses)],
            "best": own[best]["parameters"],
            "interior": 0 < best < len(own) - 1,
            "monotone": all(b <= a for a, b in itertools.pairwise(losses)),
            "largest_worse_by": {"nats": losses[-1] - losses[best], "half_width": half},
        }
    return found


def ensemble(row: Row, rows: Sequence[Row], noise: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return an ensemble against the best single model that its total parameters could have paid for, if any is."""
    affordable = [
        each
        for each in rows
        if each["recipe"] == "regularised"
        and each["data"] == row["data"]
        and each["parameters"] <= row["total_parameters"]
    ]
    if not affordable:
        return []
    single = min(affordable, key=lambda each: float(each["loss"]))
    gain = float(single["loss"]) - float(row["loss"])
    variances = [noise[str(each["recipe"])] ** 2 / len(each["seed_losses"]) for each in (single, row)]
    half = Z * math.sqrt(sum(variances))
    own = [float(each["loss"]) for each in affordable if each["parameters"] == row["parameters"]]
    found = {
        "data": row["data"],
        "member": row["shape"],
        "members": len(row["seed_losses"]),
        "total_parameters": row["total_parameters"],
        "loss": row["loss"],
        "member_mean": mean_interval(row["seed_losses"]).estimate,
        "best_single": {"shape": single["shape"], "parameters": single["parameters"], "loss": single["loss"]},
        "gain": {"nats": gain, "interval": [gain - half, gain + half]},
        "gain_over_same_size": own[0] - float(row["loss"]) if own else None,
    }
    return [found]
