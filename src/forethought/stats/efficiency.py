"""How much data a recipe is worth: the data at which a standard recipe's law reaches the same loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from forethought.core.errors import InputError
from forethought.core.rng import generator
from forethought.stats.powerlaw import PowerLaw


@dataclass(frozen=True)
class DataEfficiency:
    """The multiplier, its interval, and whether it can be quoted; the upper end is infinite where nothing bounds it."""

    multiplier: float
    interval: tuple[float, float]
    identified: bool
    reason: str
    extrapolated: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what is not finite is null."""
        return {
            "multiplier": self.multiplier if self.identified else None,
            "interval": [end if math.isfinite(end) else None for end in self.interval],
            "identified": self.identified,
            "reason": self.reason,
            "extrapolated": self.extrapolated,
        }


def data_efficiency(
    loss: float,
    standard_law: PowerLaw,
    *,
    data: float = 1.0,
    standard_loss: float | None = None,
    loss_sigma: float = 0.0,
    standard_sigma: float = 0.0,
    largest_data: float = math.inf,
    level: float = 0.95,
    seed: int = 0,
) -> DataEfficiency:
    """Return the data at which the standard law reaches `loss`, as a multiple of what the recipe used.

    The law is in the units of `data`. With `standard_loss`, the standard recipe's measured loss at the same data, the
    reference is the law's own data for it, so both go through the fit (Kim et al. 2025, section 4); otherwise it is
    `data`. The interval joins the law's bootstrap samples with the sds of the two losses. `largest_data`, the end of
    the fitted range, marks the multiplier as extrapolated beyond it.

    Raises:
        InputError: a loss or the data is not finite and positive, or an sd is negative.
    """
    reference_loss = loss if standard_loss is None else standard_loss
    for name, value in (("loss", loss), ("data", data), ("standard_loss", reference_loss)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} {value} must be finite and greater than 0")
    if not (loss_sigma >= 0 and standard_sigma >= 0 and 0 < level < 1):
        raise InputError(f"sds {loss_sigma} and {standard_sigma} must not be negative, and level {level} from 0 to 1")
    reached = standard_law.inverse(loss)
    reference = data if standard_loss is None else standard_law.inverse(standard_loss)
    samples_R3 = standard_law.samples
    noise_R2 = generator(seed, "stats.efficiency").standard_normal((len(samples_R3), 2))
    reached_R = _data_at(samples_R3, loss + loss_sigma * noise_R2[:, 0])
    reference_R = (
        np.full(len(samples_R3), data)
        if standard_loss is None
        else _data_at(samples_R3, standard_loss + standard_sigma * noise_R2[:, 1])
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio_R = np.where(np.isfinite(reference_R), reached_R / reference_R, 0.0)
    low, high = (float(end) for end in np.quantile(ratio_R, [(1 - level) / 2, (1 + level) / 2], method="nearest"))
    if not (math.isfinite(reached) and math.isfinite(reference)):
        return DataEfficiency(math.inf, (low, math.inf), False, "the standard law never reaches this loss", True)
    reason = "" if math.isfinite(high) else "within its error the standard law may never reach this loss"
    return DataEfficiency(reached / reference, (low, high), not reason, reason, reached > largest_data)


def _data_at(samples_R3: np.ndarray[Any, np.dtype[np.float64]], losses_R: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    above = losses_R - samples_R3[:, 2]
    with np.errstate(over="ignore", divide="ignore"):
        powers = (samples_R3[:, 0] / np.maximum(above, 1e-300)) ** (1.0 / samples_R3[:, 1])
    return np.where(above > 0, powers, math.inf)
