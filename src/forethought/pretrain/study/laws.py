"""The laws of a study: over size, members and data, each with its interval or the reason why there is none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from forethought.core.errors import InputError
from forethought.stats import data_efficiency, fit_power_law, fit_tiers
from forethought.stats.powerlaw import PowerLaw

Row = Mapping[str, Any]
NUM_BOOTSTRAP = 400


def laws_of(rows: Sequence[Row], *, seed: int = 0) -> dict[str, Any]:
    """Return every law that the rows of a study allow, as plain JSON values.

    Sizes are total parameters in millions, data in millions of tokens. A curve with too few points has a reason in
    place of a law.
    """
    budgets = sorted({int(row["data"]) for row in rows})
    return {
        "units": {"size": "million parameters, embeddings included", "data": "million tokens"},
        "over_size": {str(data): _over_size(rows, data, seed) for data in budgets},
        "over_members": [_over_members(row, seed) for row in rows if row["recipe"] == "ensemble"],
        "joint": {str(data): _joint(rows, data, seed) for data in budgets},
        "over_data": {recipe: _over_data(rows, recipe, seed) for recipe in _recipes(rows)},
        "efficiency": efficiency_of(rows, seed=seed),
    }


def shape_of_curve(rows: Sequence[Row], recipe: str, data: int) -> dict[str, Any]:
    """Return where a recipe's best size lies: inside the ladder, at its end, and whether larger never hurts."""
    points = sorted((float(row["parameters"]), float(row["loss"])) for row in _of(rows, recipe, data))
    losses = [loss for _, loss in points]
    if not losses:
        return {}
    best = losses.index(min(losses))
    return {
        "best_parameters": points[best][0],
        "best_loss": losses[best],
        "interior": 0 < best < len(losses) - 1,
        "monotone": all(after <= before for before, after in itertools.pairwise(losses)),
        "sizes": len(losses),
    }


def efficiency_of(rows: Sequence[Row], *, seed: int = 0) -> list[dict[str, Any]]:
    """Return for each recipe and budget how much data the standard recipe would need for the same loss.

    The standard recipe's law runs through its best size at each budget.
    """
    best = best_by_data(rows, "standard")
    try:
        law = _fit(best, seed)
    except InputError as error:
        return [{"reason": f"the standard recipe's law over data is not fitted: {error}"}]
    largest = max(data for data, _, _ in best) / 1e6
    found: list[dict[str, Any]] = []
    for recipe in _recipes(rows):
        for data, loss, sd in best_by_data(rows, recipe):
            reference = {d: (value, noise) for d, value, noise in best}.get(data)
            efficiency = data_efficiency(
                loss,
                law,
                data=data / 1e6,
                standard_loss=None if reference is None else reference[0],
                loss_sigma=sd,
                standard_sigma=0.0 if reference is None else reference[1],
                largest_data=largest,
                seed=seed,
            )
            found.append({"recipe": recipe, "data": data, "loss": loss, **efficiency.to_dict()})
    return found


def best_by_data(rows: Sequence[Row], recipe: str) -> list[tuple[int, float, float]]:
    """Return (data, loss, sd of that loss) of a recipe's best size at each budget, fewest first."""
    found: list[tuple[int, float, float]] = []
    for data in sorted({int(row["data"]) for row in rows}):
        candidates = _of(rows, recipe, data)
        if candidates:
            row = min(candidates, key=lambda each: float(each["loss"]))
            found.append((data, float(row["loss"]), sd_of_loss(row)))
    return found


def sd_of_loss(row: Row) -> float:
    """Return the sd of a row's loss: that of one run over the root of the number of seeds behind it."""
    return float(row["seed_sd"]) / len(row["seed_losses"]) ** 0.5


def _over_size(rows: Sequence[Row], data: int, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for recipe in _recipes(rows):
        points = [(row["parameters"], row["loss"], sd_of_loss(row)) for row in _of(rows, recipe, data)]
        found[recipe] = shape_of_curve(rows, recipe, data) | {
            "law": _or_reason(lambda points=points: _fit(points, seed))
        }
    return found


def _over_members(row: Row, seed: int) -> dict[str, Any]:
    curve = [float(loss) for loss in row["curve"]]
    members = list(range(1, len(curve) + 1))
    # A point of the curve averages over all members, so its noise is that of their mean, whatever the subset's size.
    sigma = [sd_of_loss(row)] * len(curve)

    def fixed() -> PowerLaw:
        return fit_power_law(members, curve, sigma, exponent=1.0, seed=seed, num_bootstrap=NUM_BOOTSTRAP)

    def free() -> PowerLaw:
        return fit_power_law(members, curve, sigma, seed=seed, num_bootstrap=NUM_BOOTSTRAP)

    own = {"shape": row["shape"], "parameters": row["parameters"], "data": row["data"]}
    return own | {"curve": curve, "law": _or_reason(fixed), "free_exponent": _or_reason(free)}


def _joint(rows: Sequence[Row], data: int, seed: int) -> dict[str, Any]:
    chosen = _of(rows, "ensemble", data)
    points = [
        (k + 1, row["parameters"] / 1e6, loss, sd_of_loss(row)) for row in chosen for k, loss in enumerate(row["curve"])
    ]

    def fit() -> Any:
        members, sizes, losses, sds = zip(*points, strict=True) if points else ((), (), (), ())
        return fit_tiers((members, sizes), losses, sds, seed=seed, num_bootstrap=NUM_BOOTSTRAP)

    return _or_reason(fit)


def _over_data(rows: Sequence[Row], recipe: str, seed: int) -> dict[str, Any]:
    return _or_reason(lambda: _fit(best_by_data(rows, recipe), seed))


def _fit(points: Sequence[tuple[float, float, float]], seed: int) -> PowerLaw:
    x = [float(each) / 1e6 for each, _, _ in points]
    y, sds = [loss for _, loss, _ in points], [sd for _, _, sd in points]
    return fit_power_law(x, y, sds if all(sds) else None, seed=seed, num_bootstrap=NUM_BOOTSTRAP)


def _or_reason(fit: Callable[[], Any]) -> dict[str, Any]:
    try:
        return fit().to_dict()
    except InputError as error:
        return {"identified": False, "asymptote": None, "reason": f"not fitted: {error}"}


def _of(rows: Sequence[Row], recipe: str, data: int) -> list[Row]:
    chosen = [row for row in rows if row["recipe"] == recipe and int(row["data"]) == data]
    return sorted(chosen, key=lambda row: row["parameters"])


def _recipes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["recipe"]) for row in rows))
