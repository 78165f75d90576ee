"""The config of a study: sizes, data budgets, the recipes on each of them, and what may vary."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.pretrain.config import FitConfig, ModelShape
from forethought.pretrain.members.config import FrontierConfig
from forethought.pretrain.study.search import Grid, Point

RecipeName = Literal["standard", "regularised", "ensemble"]


@config
class StudyConfig:
    """A ladder of sizes and data budgets, and the recipes that climb it."""

    fit: FitConfig = FitConfig()
    sizes: Annotated[tuple[ModelShape, ...], tyro.conf.Suppress] = (ModelShape(),)
    """Shapes of the models, smallest first."""
    data: tuple[int, ...] = (65_536,)
    """Training tokens, fewest first."""
    recipes: tuple[RecipeName, ...] = ("standard", "regularised", "ensemble")
    """What is measured at every size and data budget."""
    grid: Grid = Grid()
    start: Point = Point(tau=0.5, lr=3e-3, epochs=16)
    """Where the first regularised search begins; later ones begin at the neighbour's tuned point."""
    searched: int = Field(default=0, ge=0)
    """Regularised points are searched at so many data budgets, fewest tokens first; those of larger budgets take the
    point of their size at the last one searched, as tau carries over, and say that they are not certified. 0: all."""
    standard_decay: float = Field(default=0.1, ge=0.0)
    """Weight decay of the standard recipe."""
    standard_start: Point = Point(tau=None, lr=3e-3, epochs=8)
    noise_seeds: int = Field(default=3, ge=3)
    """Seeds behind every tuned point; a difference below their spread is no result."""
    members: int = Field(default=5, ge=2)
    """Members of an ensemble."""
    longer: float = Field(default=2.0, gt=0.0)
    """Factor on a member's epochs, and on its tau, against the best single model (less decay, more passes)."""
    search_ensemble: bool = False
    """Search the box around the ensemble's settings by the ensemble's own loss, instead of taking them as they are; at
    budgets that are not `searched`, the point of the same size at the last one that was is taken."""
    search_members: int = Field(default=0, ge=0)
    """Members by whose average that search judges, as a few tell settings apart; 0: all."""
    frontier: FrontierConfig = FrontierConfig()
    workers: int = Field(default=1, ge=1)
    """Members or batches that train at a time."""
    backend: Literal["local", "ray"] = "local"
    group: int = Field(default=0, ge=0)
    """Members a batch; 0: the faster size, measured."""
    seed: int = Field(default=0, ge=0)

    def __post_init__(self) -> None:
        if not self.sizes or not self.data or not self.recipes:
            raise ConfigError("a study needs at least one size, one data budget and one recipe")
        if list(self.data) != sorted(set(self.data)) or self.data[0] < 1:
            raise ConfigError(f"data budgets are {self.data}; give rising numbers of tokens")
