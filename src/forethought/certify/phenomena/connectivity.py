"""Mode connectivity: the barrier between two solutions, before and after aligning units, and a curved way round."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from forethought.certify.phenomena.networks import FlatMLP, batch_loss, error_rate, fit_vector
from forethought.certify.phenomena.outcome import Budget, Outcome, Panel, Rows, ends_of, judged
from forethought.core.rng import generator
from forethought.data.images import load_digits

_WAYS = ("straight", "straight, units aligned", "curve")
_COLUMNS = ("barrier, nats", "highest loss", "worst test error on the way")
_POSITIONS = np.linspace(0, 1, 21)


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
    width, steps, num_seeds = (32, 300, 1) if budget == "smoke" else (64, 1500, 6)
    found = [_one(width, steps, seed, repeat) for repeat in range(num_seeds)]
    losses = found[0][0]
    cells = {way: [cell[1][way] for cell in found] for way in losses}
    rows = [[way, *np.mean(np.array(values), axis=0).tolist()] for way, values in cells.items()]
    seeds = range(num_seeds)
    straight, aligned, curve = (cells[way] for way in _WAYS)
    claims, holds = judged(
        {
            "the straight line has a barrier (above 0.05 nat)": [straight[i][0] - 0.05 for i in seeds],
            "alignment lowers it (to 0.7 of it)": [0.7 * straight[i][0] - aligned[i][0] for i in seeds],
            "the curve has next to none (a tenth of it)": [0.1 * straight[i][0] - curve[i][0] for i in seeds],
        }
    )
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
                "training loss on the way, first seed",
                "position",
                "nats",
                {name: (_POSITIONS.tolist(), values) for name, values in losses.items()},
            )
        ],
        [
            Rows("means over seeds", ["way", *_COLUMNS], rows),
            ends_of("95 % intervals", ["way"], _COLUMNS, cells),
            claims,
        ],
        holds,
        {"hidden width": width, "steps": steps, "seeds": num_seeds},
    )


def _one(width: int, steps: int, seed: int, repeat: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the training loss on every way, and (barrier, highest loss, worst test error) of each."""
    train, test = load_digits(seed=seed + repeat)
    inputs, labels = torch.from_numpy(train.inputs), torch.from_numpy(train.labels)
    test_inputs, test_labels = torch.from_numpy(test.inputs), torch.from_numpy(test.labels)
    model, own = FlatMLP((64, width, 10)), 3 * (seed + repeat)
    first, second = (
        fit_vector(
            batch_loss(model, inputs, labels, seed=own + end), model.start(seed + repeat, end), steps=steps, lr=1e-2
        )
        for end in range(2)
    )
    aligned = align_units(model, first, second)
    middle = _bend(model, first, second, inputs, labels, steps, own)
    ways = (
        [(1 - s) * first + s * second for s in _POSITIONS],
        [(1 - s) * first + s * aligned for s in _POSITIONS],
        [(1 - s) ** 2 * first + 2 * s * (1 - s) * middle + s**2 * second for s in _POSITIONS],
    )
    losses: dict[str, list[float]] = {}
    figures: dict[str, list[float]] = {}
    for name, way in zip(_WAYS, ways, strict=True):
        losses[name] = [float(functional.cross_entropy(model(v, inputs), labels)) for v in way]
        level = [(1 - s) * losses[name][0] + s * losses[name][-1] for s in _POSITIONS]
        barrier = max(loss - flat for loss, flat in zip(losses[name], level, strict=True))
        figures[name] = [barrier, max(losses[name]), max(error_rate(model(v, test_inputs), test_labels) for v in way)]
    return losses, figures


def _bend(
    model: FlatMLP, first: Tensor, second: Tensor, inputs: Tensor, labels: Tensor, steps: int, seed: int
) -> Tensor:
    plain = batch_loss(model, inputs, labels, seed=seed + 2)

    def loss(middle: Tensor, step: int) -> Tensor:
        s = float(generator(seed, "phenomena.curve", step).uniform())
        return plain((1 - s) ** 2 * first + 2 * s * (1 - s) * middle + s**2 * second, step)

    return fit_vector(loss, 0.5 * (first + second), steps=2 * steps, lr=1e-2)
