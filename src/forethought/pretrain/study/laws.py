"""The laws of a study: over size, members and data, each with its interval or the reason why there is none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from forethought.core.errors import InputError
from forethought.pretrain.study.limits import band, limit_points, worth
from forethought.stats import fit_power_law, fit_tiers
from forethought.stats.powerlaw import PowerLaw

Row = Mapping[str, Any]
NUM_BOOTSTRAP = 400


def laws_of(rows: Sequence[Row], *, seed: int = 0) -> dict[str, Any]:
    """Return every law that the rows of a study allow, as plain JSON values.

    Sizes are total parameters in millions, data in millions of tokens. A curve with too few points has a reason in
    place of a law.
    """
    budgets = sorted({int(row["data"]) for row in rows})
    over_size = {str(data): _over_size(rows, data, seed) for data in budgets}
    joint = {str(data): _joint(rows, data, seed) for data in budgets}
    single = {data: found["regularised"]["law"] for data, found in over_size.items() if "regularised" in found}
    limits = {"regularised limit": limit_points(single), "joint limit": limit_points(joint)}
    return {
        "units": {"size": "million parameters, embeddings included", "data": "million tokens"},
        "over_size": over_size,
        "over_members": [_over_members(row, seed) for row in rows if row["recipe"] == "ensemble"],
        "joint": joint,
        "over_data": {recipe: _over_data(rows, recipe, seed) for recipe in _recipes(rows)}
        | {recipe: _or_reason(lambda points=points: _fit(points, seed)) for recipe, points in limits.items()},
        "joint_over_data": _joint_over_data(rows, seed),
        "efficiency": efficiency_of(rows, limits, seed=seed),
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


def efficiency_of(
    rows: Sequence[Row], limits: Mapping[str, Sequence[tuple[int, float, float]]] | None = None, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Return for each recipe and budget how much data the standard recipe would need for the same loss.

    The standard recipe's law runs through its best size at each budget; "measured" is the multiplier by its measured
    losses alone. `limits` are losses in the limit of size or members, as (data, loss, sd) by name.
    """
    best = best_by_data(rows, "standard")
    if not best:
        return [{"reason": "the standard recipe's law over data is not fitted: that recipe was not measured"}]
    law: PowerLaw | str
    try:
        law = _fit(best, seed)
    except InputError as error:
        law = f"the standard recipe's law over data is not fitted: {error}"
    found: list[dict[str, Any]] = []
    for recipe in _recipes(rows):
        found += worth(recipe, best_by_data(rows, recipe), best, law, seed=seed)
    for name, points in (limits or {}).items():
        found += worth(name, points, best, law, seed=seed, limit=True)
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
        law = _or_reason(lambda points=points: _fit(points, seed), [size / 1e6 for size, _, _ in points])
        found[recipe] = shape_of_curve(rows, recipe, data) | {"law": law}
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
    return own | {"curve": curve, "law": _or_reason(fixed, members), "free_exponent": _or_reason(free)}


def _joint(rows: Sequence[Row], data: int, seed: int) -> dict[str, Any]:
    points = _ensemble_points(_of(rows, "ensemble", data))

    def fit() -> Any:
        members, sizes, _, losses, sds = zip(*points, strict=True) if points else ((), (), (), (), ())
        return fit_tiers((members, sizes), losses, sds, seed=seed, num_bootstrap=NUM_BOOTSTRAP)

    return _or_reason(fit)


def _joint_over_data(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """The whole chain in one: the limit over members, then over size, then over data, errors of each passed on."""
    points = _ensemble_points([row for row in rows if row["recipe"] == "ensemble"])

    def fit() -> Any:
        members, sizes, data, losses, sds = zip(*points, strict=True) if points else ((), (), (), (), ())
        return fit_tiers((members, sizes, data), losses, sds, seed=seed, num_bootstrap=NUM_BOOTSTRAP)

    return _or_reason(fit)


def _ensemble_points(rows: Sequence[Row]) -> list[tuple[int, float, float, float, float]]:
    """(members, million parameters, million tokens, loss, sd of that loss) along the curves of ensembles."""
    return [
        (k + 1, row["parameters"] / 1e6, row["data"] / 1e6, loss, sd_of_loss(row))
        for row in rows
        for k, loss in enumerate(row["curve"])
    ]


def _over_data(rows: Sequence[Row], recipe: str, seed: int) -> dict[str, Any]:
    return _or_reason(lambda: _fit(best_by_data(rows, recipe), seed))


def _fit(points: Sequence[tuple[float, float, float]], seed: int) -> PowerLaw:
    x = [float(each) / 1e6 for each, _, _ in points]
    y, sds = [loss for _, loss, _ in points], [sd for _, _, sd in points]
    return fit_power_law(x, y, sds if all(sds) else None, seed=seed, num_bootstrap=NUM_BOOTSTRAP)


def _or_reason(fit: Callable[[], Any], x: Sequence[float] = ()) -> dict[str, Any]:
    """The law as JSON values, with its band over x where x is given, or why there is none."""
    try:
        law = fit()
    except InputError as error:
        return {"identified": False, "asymptote": None, "reason": f"not fitted: {error}"}
    return {**law.to_dict(), "band": band(law, x)} if x else law.to_dict()


def _of(rows: Sequence[Row], recipe: str, data: int) -> list[Row]:
    chosen = [row for row in rows if row["recipe"] == recipe and int(row["data"]) == data]
    return sorted(chosen, key=lambda row: row["parameters"])


def _recipes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["recipe"]) for row in rows))
