"""Priors without a message: a Gaussian over weights, and a student that learns from labels alone.

Both fix everything before the data are seen, as decoder/recipe.py does for messages; what was left open stands in a
grid and is paid for.
"""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from forethought.certify.decoder.recipe import Seed
from forethought.core.config import config, digest, to_dict
from forethought.core.errors import ConfigError

Deviation = Annotated[float, Field(gt=0, le=1e6)]


@config
class NetworkRecipe:
    """A network of the decoder's table by its settings, or "given": a module of one's own that the verifier has."""

    architecture: Annotated[str, Field(max_length=64)] = "given"
    settings: dict[str, Any] = field(default_factory=dict)


@config
class GaussianPrior:
    """N(first weights, deviation^2) over all weights, with first weights from a seed; the deviations are the grid."""

    network: NetworkRecipe
    deviations: Annotated[tuple[Deviation, ...], Field(min_length=1, max_length=4096)] = (0.3,)
    seed: Seed = 0
    precision: Literal["float32", "float64"] = "float64"

    def __post_init__(self) -> None:
        if len(set(self.deviations)) != len(self.deviations):
            raise ConfigError(f"the grid of prior deviations {self.deviations} holds one twice; give different values")

    @property
    def choice_bits(self) -> float:
        """The bits that name one deviation of the grid."""
        return math.log2(len(self.deviations))

    @property
    def sha256(self) -> str:
        """The hash of the declaration in canonical JSON."""
        return digest(to_dict(self))


@config
class StudentPrior:
    """A student that would draw its own labels: network, seed, rule of learning, pool, and when it may be taken."""

    network: NetworkRecipe
    pool_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    steps: Annotated[int, Field(ge=1, le=1 << 24)] = 600
    checkpoints: Annotated[int, Field(ge=1, le=1 << 24)] = 12
    batch: Annotated[int, Field(ge=1, le=1 << 20)] = 100
    lr: Annotated[float, Field(gt=0, le=1e3)] = 3e-3
    seed: Seed = 0
    precision: Literal["float32", "float64"] = "float64"

    def __post_init__(self) -> None:
        if self.checkpoints > self.steps:
            raise ConfigError(f"num_checkpoints {self.checkpoints} exceeds steps {self.steps}; give fewer")

    @property
    def inspected(self) -> tuple[int, ...]:
        """The steps after which the student may be taken, evenly spaced."""
        return tuple(round((i + 1) * self.steps / self.checkpoints) for i in range(self.checkpoints))

    @property
    def choice_bits(self) -> float:
        """The bits that name one checkpoint."""
        return math.log2(self.checkpoints)

    @property
    def sha256(self) -> str:
        """The hash of the declaration in canonical JSON."""
        return digest(to_dict(self))
