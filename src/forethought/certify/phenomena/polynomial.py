"""Soft bias against restriction: a polynomial of degree 150 with a preference for low orders, and double descent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from forethought.certify.phenomena.linear import (
    SCALES,
    Array,
    effective_dimension,
    gaussian_bound,
    gibbs_clipped_square,
    legendre,
    log_evidence,
    matched_precision,
    minimum_norm,
    ridge,
)
from forethought.certify.phenomena.outcome import Budget, Outcome, Panel, Rows, ends_of, judged
from forethought.core.rng import generator

DEGREE = 150
NOISE = 0.1
NUM_POINTS = 60
RESTRICTED = 3
_FLAT, _NONE = 1e-3, 1e-9

TARGETS: dict[str, Callable[[Array], Array]] = {
    "2x^3 - x": lambda x: 2 * x**3 - x,
    "sin 9x + 0.7 |x|": lambda x: np.sin(9 * x) + 0.7 * np.abs(x),
    "1 / (1 + 25 x^2)": lambda x: 1 / (1 + 25 * x**2),
}


def order_penalty(degree: int, *, weight: float = 1e-3, power: float | None = 4.0, base: float | None = None) -> Array:
    """Return penalties that grow with the order j: weight (1 + j)^power, or weight base^j where a base is given.

    The preference is for low orders of the basis it is used with: base 1.2 is strong among monomials and weak among
    Legendre polynomials.
    """
    order = np.arange(degree + 1, dtype=np.float64)
    grown = order * math.log(base) if base is not None else (power or 0.0) * np.log1p(order)
    return weight * np.exp(np.minimum(grown, 600.0))


def order_polynomial(budget: Budget, seed: int) -> Outcome:
    """Compare restriction, no bias and two soft biases on three targets, with the evidence beside the error."""
    num_seeds = 8 if budget == "smoke" else 20
    priors = {
        f"restricted to degree {RESTRICTED}": (RESTRICTED, np.full(RESTRICTED + 1, _NONE)),
        f"degree {DEGREE}, flat ridge": (DEGREE, np.full(DEGREE + 1, _FLAT)),
        f"degree {DEGREE}, least norm": (DEGREE, np.full(DEGREE + 1, _NONE)),
        f"degree {DEGREE}, penalty (1 + j)^4": (DEGREE, order_penalty(DEGREE)),
        f"degree {DEGREE}, penalty 1.2^j": (DEGREE, order_penalty(DEGREE, base=1.2)),
    }
    grid = np.linspace(-0.98, 0.98, 400)
    panels: list[Panel] = []
    cells: dict[tuple[str, str], list[list[float]]] = {}
    for number, (target, function) in enumerate(TARGETS.items()):
        curves = {"truth": (grid.tolist(), function(grid).tolist())}
        for name, (degree, penalties) in priors.items():
            cells[target, name] = []
            for repeat in range(num_seeds):
                x, y = _sample(function, NUM_POINTS, NOISE, seed, number, repeat)
                guess = legendre(grid, degree) @ ridge(legendre(x, degree), y, penalties)
                # A flat weight of 1e-9 has no meaning as a prior; the restricted model gets a broad one instead.
                evidence = log_evidence(legendre(x, degree), y, np.maximum(penalties, 1e-4), NOISE)
                cells[target, name].append([float(np.sqrt(np.mean((guess - function(grid)) ** 2))), evidence])
                if repeat == 0 and name.endswith(("^4", "degree 3", "flat ridge")):
                    curves[name] = (grid.tolist(), np.clip(guess, -3, 3).tolist())
        panels.append(Panel(target, "x", "f(x), cut at +-3", curves))
    columns = ["RMSE", "log evidence"]
    rows = [[*key, *np.median(np.array(found), axis=0).tolist()] for key, found in cells.items()]
    claims, holds = judged(_order_margins(cells, num_seeds))
    return Outcome(
        "order-polynomial",
        "A soft preference for low orders beats a hard limit",
        f"A polynomial of degree {DEGREE} fitted to {NUM_POINTS} points (noise {NOISE}): restriction wins only where "
        "the target is inside it; a penalty that grows with the order is good everywhere, with 2.5 times more "
        "coefficients than points, and the log marginal likelihood says so without a test set. The order is that of "
        "the Legendre basis: another basis is another preference.",
        budget,
        seed,
        panels,
        [
            Rows("medians over seeds", ["target", "prior", *columns], rows),
            ends_of("95 % intervals of the means", ["target", "prior"], columns, cells),
            claims,
        ],
        holds,
        {"points": NUM_POINTS, "noise": NOISE, "basis": "Legendre, unit mean square", "seeds": num_seeds},
    )


def _order_margins(cells: dict[tuple[str, str], list[list[float]]], num_seeds: int) -> dict[str, list[float]]:
    """Margins a seed, errors as log ratios; columns of a cell: 0 RMSE, 1 log evidence."""
    soft, hard = f"degree {DEGREE}, penalty (1 + j)^4", f"restricted to degree {RESTRICTED}"
    free, names, seeds = f"degree {DEGREE}, least norm", list(TARGETS), range(num_seeds)

    def ratio(target: str, worse: str, better: str) -> list[float]:
        return [math.log(cells[target, worse][i][0] / cells[target, better][i][0]) for i in seeds]

    def least(columns: list[list[float]]) -> list[float]:
        return [min(values) for values in zip(*columns, strict=True)]

    outside = [[cells[t, soft][i][1] - cells[t, hard][i][1] for i in seeds] for t in names[1:]]
    return {
        "restriction wins inside its class": ratio(names[0], soft, hard),
        "the soft bias wins on the other targets": least([ratio(t, hard, soft) for t in names[1:]]),
        "the soft bias beats no bias on all targets": least([ratio(t, free, soft) for t in names]),
        "the evidence prefers the soft bias to restriction outside the class": least(outside),
    }


def degree_descent(budget: Budget, seed: int) -> Outcome:
    """Sweep the degree of a least-norm polynomial through the number of points, with dimension and bound beside."""
    n, noise, width, delta = 20, 0.2, 2.0, 0.05
    num_seeds = 5 if budget == "smoke" else 20
    degrees = [1, 3, 5, 8, 12, 16, 19, 22, 26, 32, 50, 100, 200]
    samples = [_sample(_wave, n, noise, seed, 7, repeat) for repeat in range(num_seeds)]
    cells = {degree: [_descent_cell(degree, x, y, noise, width, delta) for x, y in samples] for degree in degrees}
    rows = [[degree, *np.median(np.array(found), axis=0).tolist()] for degree, found in cells.items()]
    columns = ["degree", "train RMSE", "test RMSE", "norm", "N_eff, alpha 1", "N_eff, matched alpha", "bound"]
    x_values = [float(row[0]) for row in rows]
    claims, holds = judged(_descent_margins(cells, num_seeds))
    return Outcome(
        "degree-descent",
        "Double descent in the degree of a polynomial",
        f"Least-norm fits to {n} noisy points: the error peaks where the coefficients equal the points ({n}) and falls "
        "again beyond. The norm falls with it; the effective dimension follows only when alpha is matched to the "
        "solution. The bound is on the squared error cut at 1 (in units of "
        f"{width}^2) of a Gaussian around the solution, at 95 %; 1 is vacuous.",
        budget,
        seed,
        [
            Panel(
                "error and norm",
                "degree",
                "value",
                {columns[i]: (x_values, [row[i] for row in rows]) for i in (1, 2, 3)},
                log_x=True,
                log_y=True,
            ),
            Panel(
                "effective dimension",
                "degree",
                "N_eff",
                {columns[i]: (x_values, [row[i] for row in rows]) for i in (4, 5)},
                log_x=True,
            ),
            Panel("bound", "degree", "certified risk", {"bound": (x_values, [row[6] for row in rows])}, log_x=True),
        ],
        [
            Rows("medians over seeds", columns, rows),
            _middle_half("middle half over seeds", columns, cells),
            claims,
        ],
        holds,
        {"points": n, "noise": noise, "target": "sin 5x", "seeds": num_seeds, "width of the loss": width},
    )


def _descent_margins(cells: dict[int, list[list[float]]], num_seeds: int) -> dict[str, list[float]]:
    """Margins a seed, errors and norms as log ratios; columns of a cell: 1 test RMSE, 2 norm, 4 matched, 5 bound."""
    near, last, seeds = (16, 19, 22), 200, range(num_seeds)

    def drop(column: int) -> list[float]:
        return [math.log(cells[19][i][column] / cells[100][i][column]) for i in seeds]

    peaks = [
        math.log(max(cells[d][i][1] for d in near) / max(cells[d][i][1] for d in cells if d not in near)) for i in seeds
    ]
    return {
        "the error peaks at the number of points (log ratio)": peaks,
        "it falls again beyond (log ratio)": drop(1),
        "the norm falls with it (log ratio)": drop(2),
        "N_eff at the matched alpha falls beyond": [cells[19][i][4] - cells[last][i][4] for i in seeds],
        "the bound is vacuous at the peak and falls beyond": [
            min(cells[19][i][5] - 0.999, cells[19][i][5] - cells[last][i][5]) for i in seeds
        ],
    }


def _middle_half(title: str, columns: Sequence[str], cells: dict[int, list[list[float]]]) -> Rows:
    """Quartiles: near the peak the errors span decades, and an interval of a mean would say nothing."""
    rows = []
    for degree, found in cells.items():
        quartiles = np.quantile(np.array(found), (0.25, 0.75), axis=0)
        rows.append([degree, *quartiles.T.ravel().tolist()])
    return Rows(title, [columns[0], *(f"{name}, {end}" for name in columns[1:] for end in ("low", "high"))], rows)


def _descent_cell(degree: int, x: Array, y: Array, noise: float, width: float, delta: float) -> list[float]:
    grid = np.linspace(-0.98, 0.98, 400)
    features = legendre(x, degree)
    weights = minimum_norm(features, y)
    test = float(np.sqrt(np.mean((legendre(grid, degree) @ weights - _wave(grid)) ** 2)))
    fitted = features @ weights
    train = float(np.sqrt(np.mean((fitted - y) ** 2)))
    eigenvalues = np.linalg.eigvalsh(features @ features.T) / noise**2
    spread = np.sqrt((features**2).sum(1))
    gibbs = {s: gibbs_clipped_square(fitted, s * spread, y, width) for s in SCALES}
    bound = gaussian_bound(weights, gibbs, len(y), delta)[0]
    dimensions = [effective_dimension(eigenvalues, alpha) for alpha in (1.0, matched_precision(weights))]
    return [train, test, float(np.linalg.norm(weights)), *dimensions, bound]


def _wave(x: Array) -> Array:
    return np.sin(5 * x)


def _sample(
    function: Callable[[Array], Array], n: int, noise: float, seed: int, target: int, repeat: int
) -> tuple[Array, Array]:
    draw = generator(seed, "phenomena.polynomial", target, repeat)
    x = draw.uniform(-1.0, 1.0, n)
    return x, function(x) + noise * draw.standard_normal(n)
