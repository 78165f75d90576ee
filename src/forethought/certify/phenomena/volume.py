"""The local volume of a minimum, in bits under the prior: clean labels, noisy labels, and poisoned solutions.

Star-domain Monte Carlo: along random rays from the anchor, in coordinates in which the prior is standard, the radius at
which the predictions have moved by a set divergence; the mass of the star under the prior is one integral a ray.

Legend: R rays, D parameters, N examples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import Tensor

from forethought.certify.phenomena.features import altered
from forethought.certify.phenomena.networks import FlatMLP, batch_loss, error_rate, fit_vector
from forethought.certify.phenomena.outcome import Budget, Outcome, Panel, Rows, ends_of, judged
from forethought.core.rng import generator, torch_generator
from forethought.data.images import load_digits

RADIUS_NATS = 0.01
_KINDS = ("clean", "30 % altered labels", "poisoned")
_COLUMNS = ("bits", "spread", "train error", "test error")


def local_volume(
    model: FlatMLP, anchor: Tensor, inputs: Tensor, *, num_rays: int, seed: int, divergence: float = RADIUS_NATS
) -> tuple[float, float]:
    """Return minus log2 of the prior mass of {mean KL of the anchor's predictions from a neighbour's <= divergence}.

    The second value is the spread (standard deviation) of the rays' log2 estimates. The mean over rays is carried by
    the longest ones, so with finitely many the volume is under-estimated: the bits are an upper estimate.
    """
    deviations = model.deviations()
    whitened = anchor / deviations
    directions = torch.randn(num_rays, len(anchor), generator=torch_generator(seed, "phenomena.rays"))
    directions = directions / directions.norm(dim=1, keepdim=True)
    target = model(anchor, inputs).log_softmax(-1)

    def cost(radii: Tensor) -> Tensor:
        moved = (whitened + radii[:, None] * directions) * deviations
        return (target.exp() * (target - model(moved, inputs).log_softmax(-1))).sum(-1).mean(-1)

    radii = _crossing(cost, num_rays, divergence)
    along = (directions @ whitened).double().numpy()
    size = len(anchor)
    logs = np.array(
        [_log_mass(float(radius), float(dot), float(whitened.double().square().sum()), size)
         for radius, dot in zip(radii, along, strict=True)]
    )  # fmt: skip
    bits = -(float(np.logaddexp.reduce(logs)) - math.log(num_rays)) / math.log(2.0)
    return float(bits), float(logs.std() / math.log(2.0))


def minima_volume(budget: Budget, seed: int) -> Outcome:
    """Compare the volumes of clean, noisy and poisoned minima over the width of the network."""
    widths, steps, num_rays, num_seeds = (
        ((16, 64), 800, 20, 1) if budget == "smoke" else ((16, 32, 64, 128), 1500, 60, 4)
    )
    cells = {
        (width, kind): [_one(width, kind, steps, num_rays, seed + repeat) for repeat in range(num_seeds)]
        for width in widths
        for kind in _KINDS
    }
    means = {key: np.mean(np.array(found), axis=0).tolist() for key, found in cells.items()}
    bits = {(kind, width): figures[0] for (width, kind), figures in means.items()}
    sizes = {width: FlatMLP((64, width, 10)).num_parameters for width in widths}
    rows = [[width, sizes[width], kind, *figures] for (width, kind), figures in means.items()]
    claims, holds = judged(_margins(cells, sizes, num_seeds))
    x = [float(width) for width in widths]
    per = {kind: (x, [bits[kind, w] / sizes[w] for w in widths]) for kind in _KINDS}
    return Outcome(
        "minima-volume",
        "Solutions that generalise fill more of the prior",
        "Bits are minus log2 of the mass, under the initial Gaussian, of the star around a solution in "
        "which predictions "
        f"move by at most {RADIUS_NATS} nat. Clean solutions take the fewest bits; those that fit altered or poisoned "
        "labels are far smaller targets. Wider networks need fewer bits a parameter. The estimate is an upper one, and "
        "only comparisons within a width mean anything.",
        budget,
        seed,
        [
            Panel(
                "bits of the solution",
                "hidden units",
                "bits",
                {kind: (x, [bits[kind, w] for w in widths]) for kind in _KINDS},
                log_x=True,
                log_y=True,
            ),
            Panel("bits a parameter", "hidden units", "bits a parameter", per, log_x=True),
        ],
        [
            Rows("means over seeds", ["hidden units", "parameters", "solution", *_COLUMNS], rows),
            ends_of("95 % intervals", ["hidden units", "solution"], _COLUMNS, cells),
            claims,
        ],
        holds,
        {"rays": num_rays, "steps": steps, "divergence": RADIUS_NATS, "examples": 600, "seeds": num_seeds},
    )


def _margins(
    cells: dict[tuple[int, str], list[list[float]]], sizes: dict[int, int], num_seeds: int
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    widths, seeds = list(sizes), range(num_seeds)
    for kind in _KINDS[1:]:
        found[f"clean minima are larger than those with {kind} (log ratio of bits, least over widths)"] = [
            min(math.log(cells[w, kind][i][0] / cells[w, _KINDS[0]][i][0]) for w in widths) for i in seeds
        ]
    first, last = widths[0], widths[-1]
    found["wider networks need fewer bits a parameter, clean"] = [
        cells[first, _KINDS[0]][i][0] / sizes[first] - cells[last, _KINDS[0]][i][0] / sizes[last] for i in seeds
    ]
    found["a poisoned minimum is worse on fresh data than a clean one"] = [
        min(cells[w, _KINDS[2]][i][3] - cells[w, _KINDS[0]][i][3] for w in widths) for i in seeds
    ]
    return found


def _one(width: int, kind: str, steps: int, num_rays: int, seed: int) -> list[float]:
    train, test = load_digits(seed=seed, num_train=1000)
    train = train.take(np.arange(600))
    labels = train.labels if kind != _KINDS[1] else altered(train, 0.3, generator(seed, "phenomena.volume"))
    inputs, targets = torch.from_numpy(train.inputs), torch.from_numpy(labels)
    fit_inputs, fit_targets = inputs, targets
    probe, probe_labels = torch.from_numpy(test.inputs), torch.from_numpy(test.labels)
    if kind == "poisoned":
        # Wrong answers are demanded on held-out rows, which a minimum can do without losing the training set.
        shift = generator(seed, "phenomena.poison").integers(1, 10, 300)
        wrong = (test.labels[:300] + shift) % 10
        fit_inputs = torch.cat([inputs, probe[:300]])
        fit_targets = torch.cat([targets, torch.from_numpy(wrong)])
    model = FlatMLP((64, width, 10))
    loss = batch_loss(model, fit_inputs, fit_targets, seed=seed)
    anchor = fit_vector(loss, model.start(seed), steps=steps, lr=1e-2)
    bits, spread = local_volume(model, anchor, inputs, num_rays=num_rays, seed=seed)
    train_error = error_rate(model(anchor, inputs), targets)
    # The first 300 held-out rows are those that poison: fresh data are the others, for every kind alike.
    return [bits, spread, train_error, error_rate(model(anchor, probe[300:]), probe_labels[300:])]


@torch.no_grad()
def _crossing(cost: Callable[[Tensor], Tensor], num_rays: int, level: float) -> Tensor:
    """Return the radius of each ray at which the cost first passes the level, by doubling and bisection."""
    low, high = torch.zeros(num_rays), torch.full((num_rays,), 1e-3)
    for _ in range(30):
        inside = cost(high) <= level
        if not bool(inside.any()):
            break
        low, high = torch.where(inside, high, low), torch.where(inside, 2 * high, high)
    for _ in range(16):
        middle = 0.5 * (low + high)
        inside = cost(middle) <= level
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return low


def _log_mass(radius: float, dot: float, square: float, size: int) -> float:
    """Return ln of area(S^(D-1)) (2 pi)^(-D/2) int_0^radius t^(D-1) exp(-(|z|^2 + 2 t z.u + t^2) / 2) dt."""
    if radius <= 0.0:
        return -math.inf
    # The integrand is a peak or an edge, as narrow as radius / D: points crowd towards the upper end, and lie evenly.
    crowded = radius * (1.0 - np.geomspace(1e-9, 1.0, 2000, endpoint=False))
    t = np.unique(np.concatenate([crowded, np.linspace(0, radius, 4001)[1:]]))
    logs: NDArray[np.float64] = (size - 1) * np.log(t) - 0.5 * (square + 2 * t * dot + t**2)
    steps = np.diff(t, prepend=0.0)
    area = math.log(2.0) + 0.5 * size * math.log(math.pi) - float(gammaln(0.5 * size))
    return area - 0.5 * size * math.log(2 * math.pi) + float(np.logaddexp.reduce(logs + np.log(steps)))
