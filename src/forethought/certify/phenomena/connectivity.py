"""Mode connectivity: the barrier between two solutions, before and after aligning units, and a curved way round."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from forethought.certify.phenomena.networks import FlatMLP, batch_loss, error_rate, fit_vector
from forethought.certify.phenomena.outcome import Budget, Outcome, Panel, Rows
from forethought.core.rng import generator
from forethought.data.images import load_digits


def align_units(model: FlatMLP, reference: Tensor, vector: Tensor) -> Tensor:
    """Return the vector with the hidden units of a one-hidden-layer network permuted to match a reference's.

    The permutation leaves the function as it is and maximises the inner product of incoming and outgoing weights.
    """
    (left_in, left_bias), (left_out, _) = model.unpack(reference)
    (weight, bias), (out, out_bias) = model.unpack(vector)
    likeness = left_in @ weight.T + left_bias[:, None] * bias[None, :] + left_out.T @ out
    _, order = linear_sum_assignment(-likeness.numpy())
    chosen = torch.from_numpy(order)
    return torch.cat([weight[chosen].flatten(), bias[chosen], out[:, chosen].flatten(), out_bias])


def mode_connectivity(budget: Budget, seed: int) -> Outcome:
    """Walk between two solutions straight, straight after alignment, and along a Bezier curve with a trained middle."""
    width, steps = (32, 300) if budget == "smoke" else (64, 1500)
    train, test = load_digits(seed=seed)
    inputs, labels = torch.from_numpy(train.inputs), torch.from_numpy(train.labels)
    test_inputs, test_labels = torch.from_numpy(test.inputs), torch.from_numpy(test.labels)
    model = FlatMLP((64, width, 10))
    ends = [
        fit_vector(
            batch_loss(model, inputs, labels, seed=seed + number), model.start(seed, number), steps=steps, lr=1e-2
        )
        for number in range(2)
    ]
    first, second = ends
    aligned = align_units(model, first, second)
    middle = _bend(model, first, second, inputs, labels, steps, seed)
    t = np.linspace(0, 1, 21)
    ways = {
        "straight": [(1 - s) * first + s * second for s in t],
        "straight, units aligned": [(1 - s) * first + s * aligned for s in t],
        "curve": [(1 - s) ** 2 * first + 2 * s * (1 - s) * middle + s**2 * second for s in t],
    }
    losses: dict[str, list[float]] = {}
    rows: list[list[object]] = []
    for name, way in ways.items():
        losses[name] = [float(functional.cross_entropy(model(v, inputs), labels)) for v in way]
        ends_loss = [(1 - s) * losses[name][0] + s * losses[name][-1] for s in t]
        barrier = max(loss - level for loss, level in zip(losses[name], ends_loss, strict=True))
        worst = max(error_rate(model(v, test_inputs), test_labels) for v in way)
        rows.append([name, barrier, max(losses[name]), worst])
    barriers = {str(row[0]): float(str(row[1])) for row in rows}
    return Outcome(
        "mode-connectivity",
        "Two solutions lie on one low road",
        "Between two networks trained from different first weights the straight line climbs; after the hidden units of "
        "one are permuted to match the other, which changes no function, it climbs far less; and a curve with one "
        "trained midpoint (Garipov et al. 2018) stays low.",
        budget,
        seed,
        [
            Panel(
                "training loss on the way",
                "position",
                "nats",
                {name: (t.tolist(), values) for name, values in losses.items()},
            )
        ],
        [Rows("barriers", ["way", "barrier, nats", "highest loss", "worst test error on the way"], rows)],
        {
            "the straight line has a barrier": barriers["straight"] > 0.05,
            "alignment lowers it": barriers["straight, units aligned"] < 0.7 * barriers["straight"],
            "the curve has next to none": barriers["curve"] < 0.1 * barriers["straight"],
        },
        {"hidden width": width, "steps": steps},
    )


def _bend(
    model: FlatMLP, first: Tensor, second: Tensor, inputs: Tensor, labels: Tensor, steps: int, seed: int
) -> Tensor:
    plain = batch_loss(model, inputs, labels, seed=seed + 2)

    def loss(middle: Tensor, step: int) -> Tensor:
        s = float(generator(seed, "phenomena.curve", step).uniform())
        return plain((1 - s) ** 2 * first + 2 * s * (1 - s) * middle + s**2 * second, step)

    return fit_vector(loss, 0.5 * (first + second), steps=2 * steps, lr=1e-2)
