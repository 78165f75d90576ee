"""Flat minima: sharpness-aware training, Hessian trace and effective dimension beside the test error."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

from forethought.certify.phenomena.curvature import ggn_product, hessian_product, spectrum
from forethought.certify.phenomena.features import altered
from forethought.certify.phenomena.networks import FlatMLP, batch_loss, error_rate, fit_vector
from forethought.certify.phenomena.outcome import Budget, Outcome, Panel, Rows, ends_of, judged
from forethought.core.rng import generator
from forethought.data.images import load_digits

ALPHAS = (0.1, 1.0, 10.0)
"""Precisions in units of the prior's own: at 1 the prior is the Gaussian law that first weights come from."""
_RADII = (0.0, 0.05, 0.2)
_COLUMNS = (
    "train error",
    "test error",
    "largest",
    "trace",
    "smallest",
    *(f"N_eff, {alpha:g}" for alpha in ALPHAS),
    "train loss",
)


def flat_minima(budget: Budget, seed: int) -> Outcome:
    """Train with and without SAM on digits with altered labels; measure curvature at the end and the test error."""
    width, steps, num_seeds = (32, 800, 1) if budget == "smoke" else (32, 2000, 6)
    cells = {rho: [_one(rho, width, steps, seed, repeat, budget) for repeat in range(num_seeds)] for rho in _RADII}
    rows = [[rho, *np.mean(np.array(found), axis=0).tolist()] for rho, found in cells.items()]
    x = [row[0] for row in rows]
    columns = ["rho", *_COLUMNS]
    claims, holds = judged(_margins(cells, num_seeds))
    return Outcome(
        "flat-minima",
        "Training that asks for flatness finds it",
        "SAM takes the gradient where the loss is worst within a radius rho. The Hessian of the mean loss at the end "
        "has a smaller trace and a smaller largest eigenvalue. The effective dimension is that of the generalised "
        "Gauss-Newton matrix of the summed loss in coordinates in which the initial law is standard, so that alpha 1 "
        "is the precision of that prior; at smaller alphas it counts directions that no data fix, and does not tell. "
        "Flatness depends on the parametrisation (Dinh et al. 2017): compare it only within one architecture and one "
        "prior, as here. SAM also leaves the training loss higher, which alone makes the Gauss-Newton matrix larger.",
        budget,
        seed,
        [
            Panel("trace of the Hessian", "rho", "trace", {"trace": (x, [row[4] for row in rows])}, log_y=True),
            Panel(
                "effective dimension",
                "rho",
                "N_eff",
                {columns[i]: (x, [row[i] for row in rows]) for i in range(6, 6 + len(ALPHAS))},
            ),
            Panel("error", "rho", "share", {columns[i]: (x, [row[i] for row in rows]) for i in (1, 2)}),
        ],
        [
            Rows("means over seeds", columns, rows),
            ends_of("95 % intervals", columns[:1], _COLUMNS, cells),
            claims,
        ],
        holds,
        {"hidden width": width, "steps": steps, "seeds": num_seeds, "altered labels": 0.1, "alphas": list(ALPHAS)},
    )


def _margins(cells: dict[float, list[list[float]]], num_seeds: int) -> dict[str, list[float]]:
    sharp, flat, seeds = cells[_RADII[0]], cells[_RADII[-1]], range(num_seeds)
    return {
        "the Hessian's trace falls with rho (log ratio)": [math.log(sharp[i][3] / flat[i][3]) for i in seeds],
        "its largest eigenvalue falls (log ratio)": [math.log(sharp[i][2] / flat[i][2]) for i in seeds],
        "the effective dimension falls at the prior's precision": [sharp[i][6] - flat[i][6] for i in seeds],
        "the test error does not rise by more than 0.01": [sharp[i][1] + 0.01 - flat[i][1] for i in seeds],
    }


def _one(rho: float, width: int, steps: int, seed: int, repeat: int, budget: Budget) -> list[float]:
    train, test = load_digits(seed=seed + repeat)
    train = train.take(np.arange(800))
    labels = torch.from_numpy(altered(train, 0.1, generator(seed, "phenomena.flat", 0, repeat)))
    inputs, test_inputs = torch.from_numpy(train.inputs), torch.from_numpy(test.inputs)
    model = FlatMLP((64, width, 10))
    loss = batch_loss(model, inputs, labels, seed=seed + repeat)
    vector = fit_vector(loss, model.start(seed, repeat), steps=steps, lr=1e-2, rho=rho)
    errors = [
        error_rate(model(vector, inputs), labels),
        error_rate(model(vector, test_inputs), torch.from_numpy(test.labels)),
    ]
    exact, rows = vector.double(), inputs.double()
    product = hessian_product(lambda v: functional.cross_entropy(model(v, rows), labels), exact)
    effort = {"steps": 30, "num_probes": 3} if budget == "smoke" else {"steps": 80, "num_probes": 5}
    hessian = spectrum(product, len(exact), seed=seed, **effort)
    deviations = model.deviations().double()
    summed = ggn_product(
        lambda v: model(deviations * v, rows),
        lambda s: functional.cross_entropy(s, labels, reduction="sum"),
        exact / deviations,
    )
    ggn = spectrum(summed, len(exact), seed=seed, **effort)
    dimensions = [ggn.effective_dimension(alpha)[0] for alpha in ALPHAS]
    loss_now = float(functional.cross_entropy(model(exact, rows), labels))
    trace = hessian.trace(lambda values: values)[0]
    return [*errors, hessian.largest, trace, hessian.smallest, *dimensions, loss_now]
