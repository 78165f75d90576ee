"""Statistics without torch: power laws, intervals, divergences, novelty and n-gram baselines.

Names are imported on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forethought.stats.chinchilla import ChinchillaLaw, fit_chinchilla
    from forethought.stats.divergence import (
        bernoulli_kl,
        binomial_tail_inverse,
        clopper_pearson,
        kl_inverse_lower,
        kl_inverse_upper,
        log_binomial_tail,
    )
    from forethought.stats.efficiency import DataEfficiency, data_efficiency
    from forethought.stats.intervals import (
        Interval,
        TestResult,
        g_test,
        g_test_two_samples,
        holm,
        mean_interval,
        median_interval,
        paired_ratio,
        wilson,
    )
    from forethought.stats.ngram import KneserNey, unigram_loss
    from forethought.stats.novelty import CUSUM, Novelty
    from forethought.stats.powerlaw import PowerLaw, fit_power_law
    from forethought.stats.tiers import TieredLaw, fit_tiers

__all__ = [
    "CUSUM",
    "ChinchillaLaw",
    "DataEfficiency",
    "Interval",
    "KneserNey",
    "Novelty",
    "PowerLaw",
    "TestResult",
    "TieredLaw",
    "bernoulli_kl",
    "binomial_tail_inverse",
    "clopper_pearson",
    "data_efficiency",
    "fit_chinchilla",
    "fit_power_law",
    "fit_tiers",
    "g_test",
    "g_test_two_samples",
    "holm",
    "kl_inverse_lower",
    "kl_inverse_upper",
    "log_binomial_tail",
    "mean_interval",
    "median_interval",
    "paired_ratio",
    "unigram_loss",
    "wilson",
]

_HOMES = {
    "chinchilla": ("ChinchillaLaw", "fit_chinchilla"),
    "divergence": (
        "bernoulli_kl",
        "binomial_tail_inverse",
        "clopper_pearson",
        "kl_inverse_lower",
        "kl_inverse_upper",
        "log_binomial_tail",
    ),
    "efficiency": ("DataEfficiency", "data_efficiency"),
    "intervals": (
        "Interval",
        "TestResult",
        "g_test",
        "g_test_two_samples",
        "holm",
        "mean_interval",
        "median_interval",
        "paired_ratio",
        "wilson",
    ),
    "ngram": ("KneserNey", "unigram_loss"),
    "novelty": ("CUSUM", "Novelty"),
    "powerlaw": ("PowerLaw", "fit_power_law"),
    "tiers": ("TieredLaw", "fit_tiers"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
