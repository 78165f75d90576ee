"""Certificates from numbers alone: errors, examples and bits, for users who count them in their own way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from forethought.certify.bounds.budget import check_counts
from forethought.certify.bounds.occam import hoeffding, occam_binomial, occam_kl
from forethought.certify.bounds.pacbayes import catoni, maurer_seeger, mcallester


@dataclass(frozen=True)
class GivenCertificate:
    """A bound on the risk of a hypothesis of given length and mistakes, beside the other bounds for the same numbers.

    `bound` is the exact binomial one; `others` are for comparison with papers and were not minimised over. `trivial` is
    the risk that needs no data, and a bound at or above it says nothing: `vacuous`.
    """

    errors: int
    n: int
    bits: float
    delta: float
    train_risk: float
    bound: float
    trivial: float
    others: dict[str, float]

    @property
    def vacuous(self) -> bool:
        """Whether the bound is no better than the trivial predictor's risk."""
        return self.bound >= self.trivial

    @property
    def gap(self) -> float:
        """The bound less the training risk."""
        return self.bound - self.train_risk

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, with `vacuous`."""
        return {**asdict(self), "vacuous": self.vacuous}

    @property
    def statement(self) -> str:
        """What is guaranteed, in words."""
        what = f"at most {self.bound:.4%}" if not self.vacuous else f"at most {self.bound:.4%} (vacuous)"
        return (
            f"With probability {1.0 - self.delta:.6g} over the draw of {self.n} independent examples, the error of a "
            f"hypothesis that a prior fixed before the data describes in {self.bits:.6g} bits and that made "
            f"{self.errors} mistakes on them is {what} on fresh examples of the same law."
        )


def certify_given(errors: int, n: int, bits: float, delta: float = 0.05, *, trivial: float = 1.0) -> GivenCertificate:
    """Return the certificate of a 0-1 loss counted on n examples for a hypothesis of a code length in bits.

    The caller vouches that the code was fixed before the data and that all choices its decoder sees are in the bits.

    Raises:
        InputError: the counts, the bits or delta are out of range.
    """
    bound = occam_binomial(errors, n, bits, delta)
    errors, n = check_counts(errors, n)
    risk = errors / n
    others = all_bounds(errors, n, bits, delta)
    return GivenCertificate(errors, n, float(bits), float(delta), risk, bound, trivial, others)


def certify_holdout(errors: int, n: int, delta: float = 0.05) -> float:
    """Return the one-sided Clopper-Pearson bound: what n examples that were not used at all would certify.

    Raises:
        InputError: the counts or delta are out of range.
    """
    return occam_binomial(errors, n, 0.0, delta)


def all_bounds(errors: int, n: int, bits: float, delta: float) -> dict[str, float]:
    """Return every bound for a deterministic 0-1 classifier by name; the first is the one to print.

    binomial <= chernoff_kl <= hoeffding by theory; the PAC-Bayes forms are there to be compared with papers.

    Raises:
        InputError: the counts, the bits or delta are out of range.
    """
    errors, n = check_counts(errors, n)
    risk = errors / n
    return {
        "binomial": occam_binomial(errors, n, bits, delta),
        "chernoff_kl": occam_kl(risk, n, bits, delta),
        "maurer_kl": maurer_seeger(risk, n, bits, delta),
        "catoni": catoni(risk, n, bits, delta),
        "mcallester": mcallester(risk, n, bits, delta),
        "hoeffding": hoeffding(risk, n, bits, delta),
    }
