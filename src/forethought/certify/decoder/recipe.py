"""What a prior declares before it sees data: the recipe of the decoder, with a closed grid for every open choice.

A recipe fixes all that turns a message into a network and a network into a risk. What was tried and chosen after the
data were seen stands in `Prior.choices` as a grid, and the chosen place in the grid is paid for in bits.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from forethought.core.config import config, digest, flatten, from_dict, to_dict
from forethought.core.errors import ConfigError, nearest

MAX_PARAMETERS = 1 << 26
MAX_DIMENSION = 1 << 24
MAX_LEVELS = 4096
MAX_CHOICES = 64

Seed = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]
Settings = dict[str, Any]


@config
class BaseRecipe:
    """The weights that the message is added to: drawn from a seed, zeros, or given by the verifier (a public model).

    `sha256` is the fingerprint of given weights (`decoder.base.fingerprint_parameters`).
    """

    kind: Literal["seeded", "zeros", "given"] = "seeded"
    seed: Seed = 0
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    def __post_init__(self) -> None:
        if (self.kind == "given") != (self.sha256 is not None):
            raise ConfigError("sha256 belongs to base weights of kind 'given' and to no other; give both or neither")


@config
class SubspaceRecipe:
    """How the decoded numbers become weights; `identity` is one number a weight and needs no dimension."""

    kind: Literal["identity", "hash", "dense", "kronecker"] = "hash"
    dimension: Annotated[int, Field(ge=1, le=MAX_DIMENSION)] | None = None
    seed: Seed = 0
    scaling: Literal["initial", "unit"] = "initial"

    def __post_init__(self) -> None:
        if (self.kind == "identity") != (self.dimension is None):
            raise ConfigError(
                f"subspace {self.kind!r} with dimension {self.dimension}: identity has none, others need one"
            )


@config
class CodebookRecipe:
    """The values a symbol can mean: a table of fp16 values, or a symmetric grid with one fp16 step.

    `per` message: one codebook and one code for all symbols; `per` tensor: one of each for every parameter tensor
    (identity subspace only).
    """

    kind: Literal["table", "grid"] = "table"
    levels: Annotated[int, Field(ge=2, le=MAX_LEVELS)] = 9
    per: Literal["message", "tensor"] = "message"


@config
class LoraRecipe:
    """Low-rank updates W + (alpha / rank) B A of the matrices whose names end in a target (arXiv 2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 4
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 32.0
    targets: Annotated[tuple[str, ...], Field(max_length=64)] = ("weight",)


@config
class ZeroOneScoring:
    """Count mistakes on (inputs, labels) in batches of a declared size; ties and NaN are mistakes."""

    loss: Literal["zero_one"] = "zero_one"
    batch_size: Annotated[int, Field(ge=1, le=1 << 20)] = 500
    precision: Literal["float32", "float64"] = "float64"


@config
class TokenScoring:
    """Mean next-token loss in nats of the model mixed with the uniform law.

    `smoothing` is the weight of the uniform law, or None for C / (1 + C) with C the price in nats a token; a number
    that was chosen on the data belongs in the choices. A window model predicts each token from the `context` tokens
    before it; other models see the tokens of their own block of `context`, blocks end to end.
    """

    vocab_size: Annotated[int, Field(ge=2, le=1 << 24)]
    context: Annotated[int, Field(ge=1, le=1 << 20)]
    loss: Literal["token"] = "token"
    smoothing: Annotated[float, Field(gt=0, lt=1)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=1 << 20)] = 64
    precision: Literal["float32", "float64"] = "float64"


@config
class Recipe:
    """All that the decoder needs besides the message."""

    architecture: Annotated[str, Field(max_length=64)]
    settings: Settings
    scoring: Annotated[ZeroOneScoring | TokenScoring, Field(discriminator="loss")] = field(
        default_factory=ZeroOneScoring
    )
    base: BaseRecipe = field(default_factory=BaseRecipe)
    subspace: SubspaceRecipe = field(default_factory=lambda: SubspaceRecipe(dimension=1000))
    codebook: CodebookRecipe = field(default_factory=CodebookRecipe)
    lora: LoraRecipe | None = None
    num_buffers: Annotated[int, Field(ge=0, le=1 << 24)] = 0

    def __post_init__(self) -> None:
        if self.codebook.per == "tensor" and self.subspace.kind != "identity":
            raise ConfigError("a codebook per tensor needs the identity subspace: other subspaces mix the tensors")


@config
class Prior:
    """A recipe and, for each leaf of it that was left open, the grid it was chosen from, in dotted names.

    The declaration is hashed into the certificate. Every grid costs log2 of its length in bits, used or not.
    """

    recipe: Recipe
    choices: Annotated[dict[str, list[Any]], Field(max_length=MAX_CHOICES)] = field(default_factory=dict)

    def __post_init__(self) -> None:
        leaves = flatten(to_dict(self.recipe))
        for name, grid in self.choices.items():
            if name not in leaves:
                raise ConfigError(f"choice {name!r} is no leaf of the recipe.{nearest(name, leaves)}")
            if not 1 <= len(grid) <= 1 << 20 or len({json.dumps(value, sort_keys=True) for value in grid}) != len(grid):
                raise ConfigError(f"the grid of {name!r} must hold 1 to 2**20 different values")

    @property
    def choice_bits(self) -> float:
        """The bits that name one place in every grid."""
        return math.fsum(math.log2(len(grid)) for grid in self.choices.values())

    @property
    def sha256(self) -> str:
        """The hash of the declaration in canonical JSON."""
        return digest(to_dict(self))

    def resolve(self, chosen: Mapping[str, int]) -> Recipe:
        """Return the recipe with the chosen place of every grid written in.

        Raises:
            ConfigError: a choice is missing, unknown or outside its grid, or the recipe does not fit together.
        """
        if chosen.keys() != self.choices.keys():
            raise ConfigError(f"chosen {sorted(chosen)} where the prior leaves open {sorted(self.choices)}")
        values = to_dict(self.recipe)
        for name, index in chosen.items():
            grid = self.choices[name]
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(grid):
                raise ConfigError(f"choice {index!r} of {name!r} is outside its grid of {len(grid)}")
            *path, leaf = name.split(".")
            owner = values
            for step in path:
                owner = owner[step]
            owner[leaf] = grid[index]
        return from_dict(Recipe, values, source="the chosen recipe")

    def find(self, recipe: Recipe) -> dict[str, int]:
        """Return the places in the grids at which `resolve` gives this recipe.

        Raises:
            ConfigError: the recipe departs from the prior in something that was not left open.
        """
        leaves = flatten(to_dict(recipe))
        chosen: dict[str, int] = {}
        for name, grid in self.choices.items():
            if leaves.get(name) not in grid:
                raise ConfigError(f"{name} = {leaves.get(name)!r} is not in the declared grid {grid}")
            chosen[name] = grid.index(leaves[name])
        if to_dict(self.resolve(chosen)) != to_dict(recipe):
            raise ConfigError("the recipe departs from the declared prior in a setting that was not left open")
        return chosen


def with_smoothing(recipe: Recipe, smoothing: float) -> Recipe:
    """Return a token recipe with its smoothing weight set."""
    if not isinstance(recipe.scoring, TokenScoring):
        raise ConfigError("only a recipe that scores tokens has a smoothing weight")
    return dataclasses.replace(recipe, scoring=dataclasses.replace(recipe.scoring, smoothing=smoothing))
