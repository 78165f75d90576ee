"""Limits of limits: members K, then size N, then data D, each a power law in the asymptotes of the one before.

Errors of the inner fits pass to the outer ones. All observations are simulated together from one set of curves that
agree with one another, every tier is refitted on each simulated set, and the outermost interval is calibrated on that.

Shapes: P observations, T tiers, R simulated data sets, N points of one tier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.core.errors import InputError
from forethought.core.rng import generator
from forethought.stats.lawfit import ASYMPTOTE, Design, solve
from forethought.stats.levenberg import Array
from forethought.stats.powerlaw import (
    PowerLaw,
    check_settings,
    checked_points,
    conclude,
    design_of,
    fit_power_law,
    observe,
)

Key = tuple[float, ...]
_MIN_SIMULATIONS = 200
_ONE_SIGMA = (0.1587, 0.8413)


@dataclass(frozen=True)
class TieredLaw:
    """The outermost law, whose asymptote is the limit over every axis, and the inner laws by outer coordinates."""

    outer: PowerLaw
    inner: tuple[dict[Key, PowerLaw], ...]

    @property
    def asymptote(self) -> float:
        """Return the limit over all axes."""
        return self.outer.asymptote

    @property
    def interval(self) -> tuple[float, float]:
        """Return the interval of the limit, errors of every tier included."""
        return self.outer.interval

    @property
    def identified(self) -> bool:
        """Return whether the limit may be quoted: every inner limit and the outer one are identified."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Return why the limit is not identified, or an empty string."""
        reasons = [f"at {key}: {law.reason}" for tier in self.inner for key, law in tier.items() if law.reason]
        return "; ".join([*reasons, *([self.outer.reason] if self.outer.reason else [])])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        tiers = [[{"at": list(key), **law.to_dict()} for key, law in tier.items()] for tier in self.inner]
        return {
            **self.outer.to_dict(),
            "identified": self.identified,
            "reason": self.reason,
            "asymptote": self.asymptote if self.identified else None,
            "inner": tiers,
        }


@dataclass(frozen=True)
class _Group:
    """The points of one curve: which of its tier's points they are, and the fitted design and parameters."""

    members_N: NDArray[np.int64]
    design: Design
    theta_R3: Array


@dataclass(frozen=True)
class _Tier:
    coordinates: list[Key]
    groups: dict[Key, _Group]


def fit_tiers(
    axes: Sequence[ArrayLike],
    loss: ArrayLike,
    sigma: ArrayLike | None = None,
    *,
    exponents: Sequence[float | None] | None = None,
    seed: int = 0,
    num_bootstrap: int = 1000,
    level: float = 0.95,
    delta: float = 1e-3,
) -> TieredLaw:
    """Fit a power law over the first axis for every setting of the others, then over the next, and so on.

    axes: innermost first, such as (members, size) or (members, size, data), each (P,); loss: (P,); sigma: the sd of a
    loss over seeds, one number or (P,), without which the residuals of all innermost curves are pooled. exponents:
    one an axis, None to fit it; by default the innermost is 1 (the variance of a mean of K members is exactly 1 / K).

    Raises:
        InputError: lengths differ, fewer than two axes, a curve with fewer than 3 distinct x, or bad values.
    """
    axes_TP = [np.asarray(axis, dtype=np.float64) for axis in axes]
    chosen = list(exponents) if exponents is not None else [1.0, *[None] * (len(axes_TP) - 1)]
    if len(axes_TP) < 2 or len(chosen) != len(axes_TP):
        raise InputError(f"give two axes or more and one exponent for each; given {len(axes_TP)} and {len(chosen)}")
    for exponent in chosen:
        check_settings(exponent, num_bootstrap, level, delta)
    checked = [checked_points(axis, loss, sigma) for axis in axes_TP]
    _, loss_P, sigma_P = checked[0]
    num_bootstrap = max(num_bootstrap, _MIN_SIMULATIONS)
    keys = [tuple(float(axis[i]) for axis in axes_TP) for i in range(len(loss_P))]
    noise_P = _pooled_noise(keys, loss_P, chosen[0], delta) if sigma_P is None else sigma_P / loss_P
    draws_RP = 1.0 + noise_P * generator(seed, "stats.tiers.bootstrap").standard_normal((num_bootstrap, len(loss_P)))
    # First pass: each curve on its own, to learn the sd of its asymptote, which weights the tier above.
    rough = _refit(keys, loss_P[None], noise_P, chosen[:1], delta, None)[0][0]
    mean_P = _curves(rough, len(loss_P), None)
    stacked = np.concatenate([loss_P[None], np.maximum(mean_P * draws_RP, mean_P * 1e-6)])
    tiers, sds, outer_y_RN = _refit(keys, stacked, noise_P, chosen[:-1], delta, None)
    outer_x = np.array([key[0] for key in tiers[-1].groups])
    outer = design_of(outer_x, outer_y_RN[0], sds[-1] * outer_y_RN[0], exponent=chosen[-1], delta=delta)
    observed = observe(outer, checked_points(outer_x, outer_y_RN[0], None)[1])
    # Second pass: simulate from curves whose limits lie on the outer law, as the model claims.
    limits = observed.prediction_N
    for tier in reversed(tiers):
        limits = _curves(tier, len(tier.coordinates), limits)
    replicas_RP = np.maximum(limits * draws_RP, limits * 1e-6)
    _, _, replicas_RN = _refit(keys, replicas_RP, noise_P, chosen[:-1], delta, (tiers, sds))
    law = conclude(observed, sds[-1], replicas_RN, level)
    return TieredLaw(law, _inner_laws(tiers, outer_y_RN[0], loss_P, noise_P, sds, chosen, level, delta))


def _refit(
    keys: list[Key],
    y_RP: Array,
    noise_P: Array,
    exponents: Sequence[float | None],
    delta: float,
    fixed: tuple[list[_Tier], list[Array]] | None,
) -> tuple[list[_Tier], list[Array], Array]:
    """Fit tier upon tier; row 0 of y sets the weights, unless the designs of an earlier pass are taken over."""
    tiers: list[_Tier] = []
    sds: list[Array] = []
    for depth, exponent in enumerate(exponents):
        groups: dict[Key, _Group] = {}
        outer_keys = sorted({key[1:] for key in keys})
        columns: list[Array] = []
        for outer in outer_keys:
            members = np.array([i for i, key in enumerate(keys) if key[1:] == outer])
            if fixed is None:
                x_N = np.array([keys[i][0] for i in members], dtype=np.float64)
                checked_points(x_N, y_RP[0, members], None)
                design = design_of(
                    x_N, y_RP[0, members], noise_P[members] * y_RP[0, members], exponent=exponent, delta=delta
                )
            else:
                design = fixed[0][depth].groups[outer].design
            theta_R3, _ = solve(design, y_RP[:, members])
            groups[outer] = _Group(members, design, theta_R3)
            columns.append(np.maximum(design.parameters(theta_R3)[:, ASYMPTOTE], 1e-6 * design.scale))
        tiers.append(_Tier(keys, groups))
        keys, y_RP = outer_keys, np.stack(columns, axis=1)
        noise_P = fixed[1][depth] if fixed is not None else _relative_sd(y_RP)
        sds.append(noise_P)
    return tiers, sds, y_RP


def _relative_sd(y_RN: Array) -> Array:
    """The sd over simulations by the central 68 %, as a skewed tail would inflate a plain one; row 0 is the data."""
    if len(y_RN) == 1:
        return np.ones_like(y_RN[0])
    ends: list[Array] = [np.asarray(np.quantile(y_RN[1:], share, axis=0), dtype=np.float64) for share in _ONE_SIGMA]
    relative: Array = (ends[1] - ends[0]) / (2.0 * y_RN[0])
    return np.maximum(relative, 1e-12)


def _curves(tier: _Tier, num_points: int, limits_N: Array | None) -> Array:
    """The fitted curves of a tier at its points, with their own limits or with those the tier above gives them."""
    values = np.empty(num_points)
    for position, group in enumerate(tier.groups.values()):
        theta_13 = group.theta_R3[:1].copy()
        if limits_N is not None:
            theta_13[0, ASYMPTOTE] = limits_N[position] / group.design.scale
        values[group.members_N] = group.design.curve(theta_13)[0]
    return values


def _pooled_noise(keys: list[Key], loss_P: Array, exponent: float | None, delta: float) -> Array:
    squares, dof = 0.0, 0
    for outer in sorted({key[1:] for key in keys}):
        members = [i for i, key in enumerate(keys) if key[1:] == outer]
        x_N, y_N, _ = checked_points([keys[i][0] for i in members], loss_P[members], None)
        observed = observe(design_of(x_N, y_N, None, exponent=exponent, delta=delta), y_N)
        squares, dof = squares + observed.squares, dof + observed.degrees_of_freedom
    if not dof:
        raise InputError("the innermost curves leave no residuals to take the noise from; give sigma or more points")
    return np.full(len(loss_P), max(float(np.sqrt(squares / dof)), 1e-9))


def _inner_laws(
    tiers: list[_Tier],
    outer_y_N: Array,
    loss_P: Array,
    noise_P: Array,
    sds: list[Array],
    exponents: Sequence[float | None],
    level: float,
    delta: float,
) -> tuple[dict[Key, PowerLaw], ...]:
    laws: list[dict[Key, PowerLaw]] = []
    y, noise = loss_P, noise_P
    for depth, tier in enumerate(tiers):
        fitted: dict[Key, PowerLaw] = {}
        for outer, group in tier.groups.items():
            x_N, members = np.exp(group.design.log_x_N), group.members_N
            fitted[outer] = fit_power_law(
                x_N,
                y[members],
                noise[members] * y[members],
                exponent=exponents[depth],
                num_bootstrap=0,
                level=level,
                delta=delta,
            )
        laws.append(fitted)
        y = np.array([law.asymptote for law in fitted.values()]) if depth + 1 < len(tiers) else outer_y_N
        noise = sds[depth]
    return tuple(laws)
