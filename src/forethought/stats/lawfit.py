"""The engine behind the power-law fits: one design of points, any number of noisy observations of it at once.

Shapes: R replicates, N points, G exponents of the start grid; parameters are theta_R3 = (amplitude, exponent,
asymptote) for y in units of `scale`, with the amplitude taken at x = exp(shift). Amplitude and asymptote stay linear:
their logarithms would bend the long valley of a slow law, and the search would stop inside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from forethought.stats.levenberg import Array, Problems, minimise, objective

LOWEST_EXPONENT = 0.02
HIGHEST_EXPONENT = 10.0
AMPLITUDE, EXPONENT, ASYMPTOTE = 0, 1, 2
_GRID_G = np.geomspace(LOWEST_EXPONENT, HIGHEST_EXPONENT, 48)
_NEGLIGIBLE = 1e-9  # an asymptote below this share of the observations counts as zero
_SIGMAS_TO_OUTLIER = 3.0
_MAX_START_VALUES = 1 << 22  # replicates x starts x points held at once, 32 MiB an array


@dataclass(frozen=True)
class Design:
    """Where the points are and how they are weighted; `noise_N` is the sd of log y, or None where it is unknown."""

    log_x_N: Array
    noise_N: Array | None
    delta: float
    exponent: float | None = None
    shift: float = 0.0
    scale: float = 1.0
    mask_RN: Array | None = field(default=None, repr=False)

    @property
    def num_parameters(self) -> int:
        """Return how many of the three parameters are free."""
        return 3 if self.exponent is None else 2

    @property
    def bounds_P2(self) -> Array:
        """Return the box of theta (3, 2); its ends mean 'zero' for amplitude and asymptote."""
        exponents = (LOWEST_EXPONENT, HIGHEST_EXPONENT) if self.exponent is None else (self.exponent, self.exponent)
        reach = 10.0 + HIGHEST_EXPONENT * float(np.abs(self.log_x_N - self.shift).max())
        return np.array([(0.0, np.exp(min(reach, 690.0))), exponents, (_NEGLIGIBLE, 3.0)])

    def problems(self, y_RN: Array) -> Problems:
        """Return the batch of robust problems on log y."""
        weights = np.ones(y_RN.shape) if self.noise_N is None else np.broadcast_to(self.noise_N**-2.0, y_RN.shape)
        if self.mask_RN is not None:
            weights = weights * self.mask_RN
        # Below three known sigmas Huber's threshold would cut into the noise it was told of and cost efficiency.
        known = 0.0 if self.noise_N is None else _SIGMAS_TO_OUTLIER * self.noise_N
        thresholds = np.maximum(self.delta, known) * np.ones(y_RN.shape[1])
        return Problems(np.log(y_RN / self.scale), np.asarray(weights, dtype=np.float64), thresholds)

    def model(self, theta_R3: Array) -> tuple[Array, Array]:
        """Return log predictions in units of scale (R, N) and their Jacobian (R, N, 3)."""
        away_N = self.log_x_N - self.shift
        curve_RN = np.exp(-theta_R3[:, 1:2] * away_N)
        term_RN = theta_R3[:, :1] * curve_RN
        total_RN = term_RN + theta_R3[:, 2:]
        slopes = np.stack([curve_RN, -term_RN * away_N, np.ones_like(term_RN)], axis=2) / total_RN[:, :, None]
        return np.log(total_RN), slopes

    def curve(self, theta_R3: Array) -> Array:
        """Return the predictions (R, N) in the units of y."""
        return self.scale * np.exp(self.model(theta_R3)[0])

    def rows(self, rows: slice) -> Design:
        """Return the design of some of the replicates."""
        return self if self.mask_RN is None else replace(self, mask_RN=self.mask_RN[rows])

    def uncentred(self) -> Design:
        """Return the same design with the amplitude taken at x = 1, where it can be held fixed."""
        return replace(self, shift=0.0)

    def parameters(self, theta_R3: Array) -> Array:
        """Return (amplitude, exponent, asymptote) rows in the units of x and y, zeros where at the lower bound."""
        amplitude_R = self.scale * theta_R3[:, 0] * np.exp(theta_R3[:, 1] * self.shift)
        asymptote_R = np.where(theta_R3[:, 2] <= _NEGLIGIBLE * 1.001, 0.0, self.scale * theta_R3[:, 2])
        return np.stack([amplitude_R, theta_R3[:, 1], asymptote_R], axis=1)


def solve(
    design: Design, y_RN: Array, held: int | None = None, values_R: Array | float = 0.0, iterations: int = 60
) -> tuple[Array, Array]:
    """Fit every replicate; return theta (R, 3) and the objectives (R,).

    `held` names one parameter (AMPLITUDE only in an uncentred design) that is held at `values_R` on theta's scale.
    Given the exponent, amplitude and asymptote are linear, so each exponent of a grid yields its best start in closed
    form (variable projection, Golub & Pereyra 1973); the best start is then polished on the log-Huber objective.
    Replicates are fitted a group at a time, so that memory stays bounded however many and however long they are.
    """
    held_R = np.broadcast_to(np.asarray(values_R, dtype=np.float64), (len(y_RN),))
    size = max(1, _MAX_START_VALUES // (len(_GRID_G) * y_RN.shape[1]))
    groups = [slice(first, first + size) for first in range(0, max(len(y_RN), 1), size)]
    parts = [_solve_group(design.rows(group), y_RN[group], held, held_R[group], iterations) for group in groups]
    return np.concatenate([theta for theta, _ in parts]), np.concatenate([values for _, values in parts])


def _solve_group(design: Design, y_RN: Array, held: int | None, held_R: Array, iterations: int) -> tuple[Array, Array]:
    problems = design.problems(y_RN)
    starts_RG3 = projected_starts(design, y_RN, problems, held, held_R)
    values_RG = np.stack(
        [objective(problems, design.model(starts_RG3[:, g])[0]) for g in range(starts_RG3.shape[1])], axis=1
    )
    best_R3 = starts_RG3[np.arange(len(y_RN)), values_RG.argmin(axis=1)]
    return minimise(
        design.model, problems, best_R3, design.bounds_P2, frozen_P=frozen(design, held), iterations=iterations
    )


def solve_from_every_start(design: Design, y_N: Array) -> tuple[Array, Array]:
    """Polish every start of the grid for one data set; return theta (G, 3) and objectives (G,), best first."""
    problems = design.problems(y_N[None])
    starts_G3 = projected_starts(design, y_N[None], problems, None, np.zeros(1))[0]
    many = Problems(
        np.repeat(problems.targets_RN, len(starts_G3), axis=0),
        np.repeat(problems.weights_RN, len(starts_G3), axis=0),
        problems.thresholds_N,
    )
    theta, values = minimise(
        design.model, many, starts_G3, design.bounds_P2, frozen_P=frozen(design, None), iterations=300
    )
    order = np.argsort(values, kind="stable")
    return theta[order], values[order]


def frozen(design: Design, held: int | None) -> NDArray[np.bool_]:
    """Return which of the three parameters do not move."""
    mask = np.array([False, design.exponent is not None, False])
    if held is not None:
        mask[held] = True
    return mask


def projected_starts(design: Design, y_RN: Array, problems: Problems, held: int | None, held_R: Array) -> Array:
    """Return the closed-form starts (R, G, 3), one for each exponent of the grid."""
    if held == EXPONENT:
        exponents_RG = held_R[:, None]
    elif design.exponent is not None:
        exponents_RG = np.full((len(y_RN), 1), design.exponent)
    else:
        exponents_RG = np.broadcast_to(_GRID_G, (len(y_RN), len(_GRID_G)))
    y_R1N = (y_RN / design.scale)[:, None, :]
    weights_R1N = problems.weights_RN[:, None, :] / y_R1N**2  # a log residual is a relative one to first order
    curve_RGN = np.exp(-exponents_RG[:, :, None] * (design.log_x_N - design.shift))
    if held == AMPLITUDE:
        amplitude = np.broadcast_to(held_R[:, None], exponents_RG.shape)
        asymptote = (weights_R1N * (y_R1N - amplitude[:, :, None] * curve_RGN)).sum(2) / weights_R1N.sum(2)
    elif held == ASYMPTOTE:
        asymptote = np.broadcast_to(held_R[:, None], exponents_RG.shape)
        above = y_R1N - asymptote[:, :, None]
        amplitude = (weights_R1N * curve_RGN * above).sum(2) / (weights_R1N * curve_RGN**2).sum(2)
        amplitude = np.maximum(amplitude, 0.0)
    else:
        amplitude, asymptote = _linear(weights_R1N, curve_RGN, y_R1N)
    return np.stack([amplitude, exponents_RG, np.maximum(asymptote, _NEGLIGIBLE)], axis=2)


def _linear(weights: Array, curve: Array, y: Array) -> tuple[Array, Array]:
    """Weighted least squares of y on (curve, 1), falling back to one term where the other would be negative."""
    s_cc, s_c, s_1 = (weights * curve**2).sum(2), (weights * curve).sum(2), weights.sum(2)
    s_cy, s_y = (weights * curve * y).sum(2), (weights * y).sum(2)
    determinant: Array = np.maximum(s_cc * s_1 - s_c**2, 1e-300)
    amplitude: Array = (s_cy * s_1 - s_c * s_y) / determinant
    asymptote: Array = (s_cc * s_y - s_c * s_cy) / determinant
    asymptote = np.where(amplitude < 0, s_y / s_1, asymptote)
    amplitude = np.where(asymptote < 0, s_cy / s_cc, amplitude)
    return np.maximum(amplitude, 0.0), np.maximum(asymptote, 0.0)
