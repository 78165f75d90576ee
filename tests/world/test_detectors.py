"""Regularisers tell dead latents from live ones (R29): each kind of collapse scores above every Gaussian batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from forethought.core.rng import torch_generator
from forethought.world.objective import vicreg
from forethought.world.sigreg import sigreg
from forethought.world.surprise.metrics import auroc

N, SIZE, DRAWS = 512, 32, 24
SCORES: dict[str, Callable[[Tensor, int], float]] = {
    "sigreg": lambda z_ND, seed: float(sigreg(z_ND, 256, generator=torch_generator(seed, "directions"))),
    "vicreg": lambda z_ND, _seed: float(vicreg(z_ND[None], 1.0, 1.0)),
}


def latents(kind: str, seed: int) -> Tensor:
    """Gaussian, all on one point, or of a few directions only, with the variance of each number kept."""
    draws = torch_generator(seed, f"detectors.{kind}")
    if kind == "collapsed":
        return torch.randn(1, SIZE, generator=draws).expand(N, SIZE) + 0.01 * torch.randn(N, SIZE, generator=draws)
    if kind == "low rank":
        low = torch.randn(N, 8, generator=draws) @ torch.randn(8, SIZE, generator=draws)
        return low / low.std(0)
    return torch.randn(N, SIZE, generator=draws)


@pytest.mark.parametrize("kind", ["collapsed", "low rank"])
@pytest.mark.parametrize("name", sorted(SCORES))
def test_a_collapse_is_told_from_gaussian_latents(name: str, kind: str) -> None:
    dead = [SCORES[name](latents(kind, seed), seed) for seed in range(DRAWS)]
    live = [SCORES[name](latents("gaussian", seed), seed) for seed in range(DRAWS)]
    assert auroc(dead, live) >= 0.99
    assert auroc([-value for value in dead], [-value for value in live]) <= 0.01, (
        "a wrong sign would pass the other way"
    )
