# pyright: reportMissingTypeStubs=false
"""Tails and quantiles of the standard laws, typed; scipy is imported on first use, as it takes 100 ms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def normal_quantile(level: float) -> float:
    """Return the level-quantile of the standard normal law."""
    from scipy import special

    return float(special.ndtri(level))


def t_quantile(level: float, degrees_of_freedom: int) -> float:
    """Return the level-quantile of Student's t law."""
    from scipy import special

    return float(special.stdtrit(degrees_of_freedom, level))


def chi_squared_quantile(level: float, degrees_of_freedom: int) -> float:
    """Return the level-quantile of the chi-squared law."""
    from scipy import special

    return float(special.chdtri(degrees_of_freedom, 1.0 - level))


def chi_squared_tail(statistic: float, degrees_of_freedom: int) -> float:
    """Return the probability that a chi-squared variable exceeds the statistic."""
    from scipy import special

    return float(special.chdtrc(degrees_of_freedom, statistic))


def f_quantile(level: float, numerator: int, denominator: int) -> float:
    """Return the level-quantile of the F law with the two degrees of freedom."""
    from scipy import special

    return float(special.fdtri(numerator, denominator, level))


def fair_binomial_tails(n: int) -> NDArray[np.float64]:
    """Return Pr[Bin(n, 1/2) <= k] for k = 0 up to below half of n."""
    from scipy import special

    return np.asarray(special.bdtr(np.arange((n + 1) // 2), n, 0.5), dtype=np.float64)
