"""Double descent in random features of the digits, with norm, effective dimension and bound beside the error."""

from __future__ import annotations

import math
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
from forethought.certify.phenomena.outcome import Budget, Outcome, Panel, Rows, ends_of, judged
from forethought.core.rng import generator
from forethought.data.images import LabelledImages, load_digits

NUM_TRAIN, NOISE_SHARE, NUM_CLASSES = 300, 0.2, 10
SIZES = (20, 50, 100, 200, 260, 300, 340, 400, 600, 1000, 2000, 5000)
ALPHAS = (1e-6, 1e-4, 1e-2)
_RESIDUAL_VARIANCE = 0.05  # of one-hot targets around a fit; curvature is features^2 over it, so alpha is scaled by it
_CLAIMS = (
    "the error peaks near the number of examples",
    "it comes back to the best smaller model, within 0.03",
    "the norm falls to a fifth of its peak (log ratio)",
    "N_eff at a fixed alpha only grows",
    "N_eff at the matched alpha falls after the peak",
    "the bound has its peak there too",
)
_COLUMNS = ("features", "train error", "test error", "norm", "N_eff, matched alpha", "bound", "KL / n")


def feature_descent(budget: Budget, seed: int) -> Outcome:
    """Sweep the number of random ReLU features through the number of examples, a fifth of the labels altered."""
    num_seeds = 1 if budget == "smoke" else 20
    sizes = sorted({*SIZES[::2], 300}) if budget == "smoke" else [*SIZES]
    cells = {size: [_one(size, seed, repeat) for repeat in range(num_seeds)] for size in sizes}
    rows = [[size, *np.median(np.array(found), axis=0).tolist()] for size, found in cells.items()]
    x = [float(row[0]) for row in rows]
    columns = [*_COLUMNS, *(f"N_eff, alpha {alpha:g}" for alpha in ALPHAS)]
    claims, holds = judged(_margins(cells, sizes, num_seeds))
    return Outcome(
        "feature-descent",
        "Double descent in the number of features",
        f"Least-norm fits of random ReLU features to {NUM_TRAIN} digits, {NOISE_SHARE:.0%} of their labels altered: "
        "the error peaks where features equal examples and falls back to a few points above the best smaller model. "
        "The norm of the weights tells the second descent; the effective dimension at a fixed alpha only grows, at the "
        "precision matched to the solution it turns. Features are scaled by 1 / sqrt(p). The bound (95 %) is for a "
        "Gaussian around the weights, on labels drawn like those given, altered ones included; at this many examples "
        "it stays above chance (0.9), so it is vacuous, and its shape is all it tells.",
        budget,
        seed,
        [
            _panel("error and bound", "share of examples", rows, columns, x, (1, 2, 5)),
            _panel("norm of the weights", "norm", rows, columns, x, (3,), log_y=True),
            _panel("effective dimension", "N_eff", rows, columns, x, (4, 7, 8, 9)),
        ],
        [
            Rows("medians over seeds", columns, rows),
            ends_of("95 % intervals of the means", columns[:1], columns[1:], cells),
            claims,
        ],
        holds,
        {"examples": NUM_TRAIN, "altered labels": NOISE_SHARE, "seeds": num_seeds, "delta": 0.05},
    )


def _margins(cells: dict[int, list[list[float]]], sizes: list[int], num_seeds: int) -> dict[str, list[float]]:
    """Margins a seed; columns of a cell: 1 test error, 2 norm, 3 matched N_eff, 4 bound, 7 N_eff at a fixed alpha."""
    near = [size for size in sizes if 200 < size <= 400]
    far = [size for size in sizes if size not in near]
    small, last, n = [size for size in sizes if size < 300], sizes[-1], NUM_TRAIN

    def figure(size: int, repeat: int, column: int) -> float:
        return cells[size][repeat][column]

    found: dict[str, list[float]] = {name: [] for name in _CLAIMS}
    for i in range(num_seeds):
        margins = (
            max(figure(s, i, 1) for s in near) - max(figure(s, i, 1) for s in far),
            min(figure(s, i, 1) for s in small) + 0.03 - figure(last, i, 1),
            math.log(0.2 * figure(n, i, 2) / figure(last, i, 2)),
            min(after - before for before, after in pairwise([figure(s, i, 7) for s in sizes])) + 1e-9,
            figure(n, i, 3) - figure(last, i, 3),
            figure(n, i, 4) - max(figure(100, i, 4) if 100 in cells else figure(20, i, 4), figure(last, i, 4)),
        )
        for name, margin in zip(_CLAIMS, margins, strict=True):
            found[name].append(margin)
    return found


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
