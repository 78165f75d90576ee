"""Coordinate search with a certificate of local optimality, over functions: it knows no model (Kim et al. 2025).

A point is certified when all its neighbours, one grid step down and up on every axis, were trained and none is better;
at a border the neighbour is the point itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import ConfigError


@config
class Grid:
    """The values each axis may take; an empty axis is not searched."""

    tau: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
    """Memory of the weights in epochs, from which the decay follows; empty: the decay of the fit, as it is."""
    lr: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Peak learning rates."""
    epochs: tuple[float, ...] = Field(default=(2, 4, 8, 16, 32), min_length=1)
    """Passes over the training tokens."""

    def __post_init__(self) -> None:
        for name in ("tau", "lr", "epochs"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)) or any(value <= 0 for value in values):
                raise ConfigError(f"grid axis {name} is {values}; give rising numbers above 0")


@config
class Point:
    """One setting of the searched axes; tau None: the decay of the fit."""

    tau: float | None
    lr: float
    epochs: float

    def __str__(self) -> str:
        """Return the point in words."""
        decay = "" if self.tau is None else f"tau {self.tau:g}, "
        return f"{decay}lr {self.lr:g}, epochs {self.epochs:g}"


Losses = Mapping[Point, float]
Evaluate = Callable[[Sequence[Point]], Losses]


@dataclass(frozen=True)
class Certificate:
    """Whether a point is locally optimal: which neighbours were never trained, and which are better."""

    point: Point
    loss: float
    missing: tuple[Point, ...]
    better: tuple[Point, ...]

    @property
    def certified(self) -> bool:
        """Return whether all neighbours were trained and none is better."""
        return not self.missing and not self.better

    def __str__(self) -> str:
        """Return the verdict in one line."""
        if self.certified:
            return "certified"
        lacks = [f"lacks {point}" for point in self.missing] + [f"{point} is better" for point in self.better]
        return f"not certified ({'; '.join(lacks)})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        point = {"tau": self.point.tau, "lr": self.point.lr, "epochs": self.point.epochs}
        return {"point": point, "loss": self.loss, "certified": self.certified, "verdict": str(self)}


def box(point: Point, grid: Grid) -> list[Point]:
    """Return the point and its neighbours, each once.

    Raises:
        ConfigError: the point does not lie on the grid.
    """
    found = [point]
    for axis in ("tau", "lr", "epochs"):
        values, own = getattr(grid, axis), getattr(point, axis)
        if not values:
            continue
        if own not in values:
            raise ConfigError(f"{axis} {own} is not on the grid {values}; start from a point on it")
        at = values.index(own)
        for neighbour in values[max(at - 1, 0) : at + 2]:
            moved = {"tau": point.tau, "lr": point.lr, "epochs": point.epochs} | {axis: neighbour}
            if neighbour != own:
                found.append(Point(**moved))
    return found


def certificate(point: Point, losses: Losses, grid: Grid) -> Certificate:
    """Judge a trained point by what is known of its box."""
    neighbours = box(point, grid)[1:]
    missing = tuple(each for each in neighbours if each not in losses)
    better = tuple(each for each in neighbours if each in losses and losses[each] < losses[point])
    return Certificate(point, losses[point], missing, better)


def search(
    start: Point, grid: Grid, evaluate: Evaluate, *, known: Losses | None = None, max_rounds: int = 50
) -> tuple[Certificate, dict[Point, float]]:
    """Train the box of the best point until no neighbour is better; return the best with its certificate, and all.

    `evaluate` trains points and returns their losses; one that it leaves out could not be afforded, and the search ends
    uncertified. `known` are losses of earlier searches.

    Raises:
        ConfigError: the start is not on the grid, or not even it could be trained.
    """
    losses = dict(known or {})
    best = start
    for _ in range(max_rounds):
        wanted = [point for point in box(best, grid) if point not in losses]
        found = evaluate(wanted) if wanted else {}
        losses.update(found)
        if best not in losses:
            raise ConfigError(f"the starting point ({start}) could not be trained; give more time or a smaller size")
        chosen = lowest(box(best, grid), losses)
        if len(found) < len(wanted) or chosen == best:
            best = chosen
            break
        best = chosen
    return certificate(best, losses, grid), losses


def lowest(points: Iterable[Point], losses: Losses) -> Point:
    """Return the trained point of the lowest loss; ties go to the first."""
    return min((point for point in points if point in losses), key=lambda point: losses[point])
