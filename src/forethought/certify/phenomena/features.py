"""Double descent in random features of the digits, with norm, effective dimension and bound beside the error."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from forethought.certify.phenomena.linear import (
    SCALES,
    Array,
    effective_dimension,
    gaussian_bound,
    gibbs_errors,
    matched_precision,
    minimum_norm,
)
from forethought.certify.phenomena.outcome import Budget, Outcome, Panel, Rows
from forethought.core.rng import generator
from forethought.data.images import LabelledImages, load_digits

NUM_TRAIN, NOISE_SHARE, NUM_CLASSES = 300, 0.2, 10
SIZES = (20, 50, 100, 200, 260, 300, 340, 400, 600, 1000, 2000, 5000)
ALPHAS = (1e-6, 1e-4, 1e-2)
_RESIDUAL_VARIANCE = 0.05  # of one-hot targets around a fit; curvature is features^2 over it, so alpha is scaled by it
_COLUMNS = ("features", "train error", "test error", "norm", "N_eff, matched alpha", "bound", "KL / n")


def feature_descent(budget: Budget, seed: int) -> Outcome:
    """Sweep the number of random ReLU features through the number of examples, a fifth of the labels altered."""
    num_seeds = 1 if budget == "smoke" else 5
    sizes = (*SIZES[::2], 300) if budget == "smoke" else SIZES
    cells = {size: [_one(size, seed, repeat) for repeat in range(num_seeds)] for size in sorted(set(sizes))}
    rows = [[size, *np.median(np.array(found), axis=0).tolist()] for size, found in cells.items()]
    x = [float(row[0]) for row in rows]
    columns = [*_COLUMNS, *(f"N_eff, alpha {alpha:g}" for alpha in ALPHAS)]
    by_size = {int(row[0]): row for row in rows}
    peak = int(max(rows, key=lambda row: row[2])[0])
    last = by_size[max(by_size)]
    matched = {int(row[0]): row[4] for row in rows}
    return Outcome(
        "feature-descent",
        "Double descent in the number of features",
        f"Least-norm fits of random ReLU features to {NUM_TRAIN} digits, {NOISE_SHARE:.0%} of their "
        f"labels altered: the "
        "test error peaks where features equal examples and then falls below every smaller model. The norm of the "
        "weights tells the second descent; the effective dimension at a fixed alpha only grows, at the precision "
        "matched to the solution it turns. Features are scaled by 1 / sqrt(p). The bound (95 %) is for a Gaussian "
        "around the weights, on labels drawn like those given, altered ones included; at this many "
        "examples it stays above "
        "chance (0.9), so it is vacuous, and its shape is all it tells.",
        budget,
        seed,
        [
            _panel("error and bound", "share of examples", rows, columns, x, (1, 2, 5)),
            _panel("norm of the weights", "norm", rows, columns, x, (3,), log_y=True),
            _panel("effective dimension", "N_eff", rows, columns, x, (4, 7, 8, 9)),
        ],
        [Rows("medians over seeds", columns, rows)],
        {
            "the error peaks near the number of examples": 200 < peak <= 400,
            "it falls below the best small model": last[2] <= min(r[2] for r in rows if r[0] < 300) + 0.02,
            "the norm falls after the peak": last[3] < 0.2 * by_size[300][3],
            "N_eff at a fixed alpha only grows": all(a[8] <= b[8] + 1e-9 for a, b in pairwise(rows)),
            "N_eff at the matched alpha falls after the peak": matched[max(matched)] < matched[300],
        },
        {"examples": NUM_TRAIN, "altered labels": NOISE_SHARE, "seeds": num_seeds, "delta": 0.05},
    )


def altered(data: LabelledImages, share: float, draw: np.random.Generator) -> np.ndarray:
    """Return the labels with a share of them replaced by uniform draws from all classes."""
    labels = data.labels.copy()
    rows = draw.permutation(len(labels))[: round(share * len(labels))]
    labels[rows] = draw.integers(0, data.num_classes, len(rows))
    return labels


def _one(size: int, seed: int, repeat: int) -> list[float]:
    train, test = load_digits(seed=seed + repeat)
    train = train.take(np.arange(NUM_TRAIN))
    draw = generator(seed, "phenomena.features", size, repeat)
    labels = altered(train, NOISE_SHARE, generator(seed, "phenomena.labels", 0, repeat))
    directions = draw.standard_normal((train.inputs.shape[1] + 1, size))
    features, test_features = (_features(part, directions) for part in (train, test))
    weights = minimum_norm(features, np.eye(NUM_CLASSES)[labels])
    scores = features @ weights
    train_error = float((scores.argmax(1) != labels).mean())
    test_error = float(((test_features @ weights).argmax(1) != test.labels).mean())
    eigenvalues = np.linalg.eigvalsh(features @ features.T)
    lengths = np.sqrt((features**2).sum(1))
    gibbs = {s: gibbs_errors(scores, s * lengths, labels) for s in SCALES}
    bound, _, divergence = gaussian_bound(weights, gibbs, NUM_TRAIN, 0.05)
    dimensions = [effective_dimension(eigenvalues, alpha) for alpha in ALPHAS]
    matched = effective_dimension(eigenvalues, _RESIDUAL_VARIANCE * matched_precision(weights))
    norm = float(np.linalg.norm(weights))
    return [train_error, test_error, norm, matched, bound, divergence / NUM_TRAIN, *dimensions]


def _features(data: LabelledImages, directions: Array) -> Array:
    inputs = np.hstack([data.inputs.astype(np.float64), np.ones((len(data), 1))])
    return np.maximum(inputs @ directions, 0.0) / np.sqrt(directions.shape[1])


def _panel(
    title: str,
    label: str,
    rows: list[list[float]],
    columns: list[str],
    x: list[float],
    chosen: tuple[int, ...],
    *,
    log_y: bool = False,
) -> Panel:
    series = {columns[i]: (x, [float(row[i]) for row in rows]) for i in chosen}
    return Panel(title, "features", label, series, log_x=True, log_y=log_y)
