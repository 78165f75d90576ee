"""Benign and tempered overfitting: a Gaussian process that fits any labels, and an evidence that is not fooled."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist

from forethought.certify.phenomena.features import altered
from forethought.certify.phenomena.linear import Array
from forethought.certify.phenomena.outcome import Budget, Outcome, Panel, Rows, ends_of, judged
from forethought.core.rng import generator
from forethought.data.images import load_digits

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_LENGTHS, _AMPLITUDES = (1.0, 2.0, 4.0, 8.0), (0.1, 0.3, 1.0, 3.0)
_JITTER = 1e-4
_COLUMNS = ("train accuracy", "test accuracy", "log evidence a row")


def benign_overfitting(budget: Budget, seed: int) -> Outcome:
    """Alter ever more labels and watch train accuracy stay at 1 while test accuracy and evidence fall."""
    n, num_seeds = (300, 1) if budget == "smoke" else (800, 5)
    cells = {share: [_one(n, share, seed, repeat) for repeat in range(num_seeds)] for share in SHARES}
    rows = [[share, *np.mean(np.array(found), axis=0).tolist()] for share, found in cells.items()]
    x = [row[0] for row in rows]
    accuracy = {"train, on the labels given": (x, [row[1] for row in rows]), "test": (x, [row[2] for row in rows])}
    claims, holds = judged(_margins(cells, num_seeds))
    return Outcome(
        "benign-overfitting",
        "A model that fits any labels still generalises",
        f"A Gaussian process on {n} digits reproduces every label it is given, altered or not. On clean labels it "
        "generalises; with noise its test error rises (tempered, not strictly benign). The log marginal likelihood, "
        "which is a PAC-Bayes quantity (Germain et al. 2016), tells the data sets apart although the fit does not.",
        budget,
        seed,
        [
            Panel("accuracy", "share of altered labels", "accuracy", accuracy),
            Panel(
                "log marginal likelihood",
                "share of altered labels",
                "nats a row",
                {"evidence": (x, [row[3] for row in rows])},
            ),
        ],
        [
            Rows("means over seeds", ["altered", *_COLUMNS], rows),
            ends_of("95 % intervals", ["altered"], _COLUMNS, cells),
            claims,
        ],
        holds,
        {"examples": n, "seeds": num_seeds, "jitter": _JITTER, "hyper-parameters": "by evidence, 4 x 4 grid"},
    )


def _margins(cells: dict[float, list[list[float]]], num_seeds: int) -> dict[str, list[float]]:
    def falls(column: int, repeat: int) -> float:
        values = [cells[share][repeat][column] for share in SHARES]
        return min(before - after for before, after in pairwise(values))

    seeds = range(num_seeds)
    return {
        "every label is reproduced (by 0.01)": [min(cells[s][i][0] for s in SHARES) - 0.99 for i in seeds],
        "clean labels generalise (above 0.9)": [cells[0.0][i][1] - 0.9 for i in seeds],
        "random labels do not (below 0.25)": [0.25 - cells[1.0][i][1] for i in seeds],
        "test accuracy falls at every step: tempered": [falls(1, i) for i in seeds],
        "the evidence falls at every step": [falls(2, i) for i in seeds],
    }


def _one(n: int, share: float, seed: int, repeat: int) -> list[float]:
    train, test = load_digits(seed=seed + repeat)
    train = train.take(np.arange(n))
    labels = altered(train, share, generator(seed, "phenomena.benign", round(100 * share), repeat))
    centred = np.eye(10)[labels] - 0.1
    among = cdist(train.inputs, train.inputs, "sqeuclidean")
    across = cdist(test.inputs, train.inputs, "sqeuclidean")
    best: tuple[float, Array, float] | None = None
    for length in _LENGTHS:
        shape = np.exp(-among / (2 * length**2))
        for amplitude in _AMPLITUDES:
            evidence, dual = _fit(amplitude**2 * shape, centred)
            if best is None or evidence > best[0]:
                best = (evidence, amplitude**2 * dual, length)
    if best is None:
        return [0.0, 0.0, -np.inf]
    evidence, dual, length = best
    fitted = np.exp(-among / (2 * length**2)) @ dual
    guessed = np.exp(-across / (2 * length**2)) @ dual
    right = float((fitted.argmax(1) == labels).mean())
    return [right, float((guessed.argmax(1) == test.labels).mean()), evidence / n]


def _fit(kernel: Array, targets: Array) -> tuple[float, Array]:
    factor = cho_factor(kernel + _JITTER * np.eye(len(kernel)), lower=True)
    dual = cho_solve(factor, targets)
    log_determinant = 2.0 * float(np.log(np.diag(factor[0])).sum())
    quadratic = float((targets * dual).sum())
    num = targets.shape[1]
    return -0.5 * (quadratic + num * log_determinant + num * len(kernel) * np.log(2 * np.pi)), dual
