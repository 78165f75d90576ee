"""The search behind `certify` and `certify_tokens`: train every attempted recipe, code it, score it as a verifier."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from forethought.certify.certificate import derive, message_of
from forethought.certify.certificate.data import Data
from forethought.certify.certificate.derive import Derived
from forethought.certify.codes.codebook import to_half
from forethought.certify.compress import CompressibleNetwork, CompressionConfig, Phase, run_phase
from forethought.certify.compress.phases import Batches, Loss
from forethought.certify.decoder import Prior, Recipe
from forethought.core.config import config, digest, to_dict
from forethought.core.errors import ConfigError


@config
class CertifySpec:
    """What a certificate is made of: the prior that the decoder knows, the share of delta, and how to train."""

    prior: Prior
    training: CompressionConfig = Field(default_factory=CompressionConfig)
    delta: float = Field(default=0.05, gt=0.0, lt=1.0)
    """The failure probability drawn for this certificate."""
    total_delta: float = Field(default=0.05, gt=0.0, lt=1.0)
    """The failure probability of all certificates on these data together."""
    purpose: str = "certificate"
    declared: str | None = None
    """SHA-256 of the prior as it was written down before the data were read (`forethought certify plan --declare`)."""
    attempt: dict[str, list[Any]] = Field(default_factory=dict)
    """Of the prior's grids, the values to train; the whole grid where a name is absent. All of the grid is paid for."""
    normaliser: Literal["none", "declared", "paid"] = "none"
    """How the inputs were normalised: not at all, by constants fixed beforehand, or by paid statistics."""

    def __post_init__(self) -> None:
        for name, values in self.attempt.items():
            grid = self.prior.choices.get(name)
            if grid is None or not values or any(value not in grid for value in values):
                raise ConfigError(
                    f"attempt {name!r} = {values} is no part of the prior's grid {grid}; give values from it"
                )

    def attempts(self) -> list[Recipe]:
        """Return the recipes to train."""
        names = list(self.prior.choices)
        grids = [self.attempt.get(name, self.prior.choices[name]) for name in names]
        places = [
            {name: self.prior.choices[name].index(value) for name, value in zip(names, values, strict=True)}
            for values in itertools.product(*grids)
        ]
        return [self.prior.resolve(place) for place in places]


@dataclass(frozen=True)
class Candidate:
    """One hypothesis that the prior covers."""

    recipe: Recipe
    message: bytes
    derived: Derived
    thrift: float

    @property
    def bound(self) -> float:
        """Its bound."""
        return self.derived.result.bound

    def to_row(self) -> dict[str, Any]:
        """Return what a table of candidates shows."""
        result = self.derived.result
        return {
            "dimension": self.recipe.subspace.dimension or self.derived.weights.count,
            "levels": self.recipe.codebook.levels,
            "thrift": self.thrift,
            "bits": self.derived.bits.total,
            "train_risk": result.train_risk,
            "bound": result.bound,
        }


@dataclass(frozen=True)
class Job:
    """How a search trains: where, on what, towards what, and at which price of a bit."""

    place: Path
    batches: Batches
    loss: Callable[[float], Loss]
    price: Callable[[Mapping[str, float], float], float]
    show: bool


def search(
    spec: CertifySpec, data: Data, module: nn.Module | None, base: Mapping[str, Tensor] | None, job: Job
) -> list[Candidate]:
    """Train and code every combination of the prior's grids, and score each as a verifier would."""
    found: list[Candidate] = []
    fingerprint = data.sha256
    for recipe in spec.attempts():
        network = _trained(spec, recipe, module, base, job, fingerprint)
        for thrift in spec.training.thrift:
            message = message_of(recipe, network.segments(thrift=thrift), buffers=_buffers(module, recipe))
            derived = derive(
                spec.prior,
                spec.prior.find(recipe),
                message,
                data,
                spec.delta,
                module=copy.deepcopy(module),
                base=base,
            )
            found.append(Candidate(recipe, message, derived, thrift))
    return found


def _trained(
    spec: CertifySpec,
    recipe: Recipe,
    module: nn.Module | None,
    base: Mapping[str, Tensor] | None,
    job: Job,
    fingerprint: str,
) -> CompressibleNetwork:
    """Return the network after both phases; the plain one is shared by all codebooks."""
    training = spec.training
    network = CompressibleNetwork(recipe, module=copy.deepcopy(module), base=base)
    plain = dataclasses.replace(recipe, codebook=type(recipe.codebook)(per=recipe.codebook.per))
    subspace = recipe.subspace
    name = f"{subspace.kind}-{subspace.dimension or 'all'}-{digest(to_dict(plain))[:8]}"
    phase = Phase(f"train {name}", plain, training, fingerprint)
    figures = run_phase(network, phase, job.batches, job.loss(0.0), job.place / f"train-{name}", show=job.show)
    network.quantise()
    bits = sum(segment.bits + segment.codebook.bits for segment in network.segments())
    price = training.rate * job.price(figures, bits) if training.rate else 0.0
    codebook = f"{recipe.codebook.kind}-{recipe.codebook.levels}"
    phase = Phase(f"code {name} {codebook}", recipe, training, fingerprint, price)
    run_phase(network, phase, job.batches, job.loss(price), job.place / f"code-{name}-{codebook}", show=job.show)
    return network


def num_buffers(module: nn.Module) -> int:
    """Return how many numbers in persistent floating-point buffers a recipe for this module has to code."""
    return sum(buffer.numel() for buffer in _float_buffers(module))


def _float_buffers(module: nn.Module) -> list[Tensor]:
    persistent = set(module.state_dict())
    return [each for name, each in module.named_buffers() if name in persistent and each.is_floating_point()]


def _buffers(module: nn.Module | None, recipe: Recipe) -> np.ndarray | None:
    if module is None or not recipe.num_buffers:
        return None
    return to_half(np.concatenate([each.detach().double().numpy().ravel() for each in _float_buffers(module)]))
