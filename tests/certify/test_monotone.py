"""Bounds move the way they must (R33): more bits, more risk or less delta never help, more examples never hurt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.certify.bounds import catoni_fixed, hoeffding, maurer_seeger, mcallester, occam_binomial, occam_kl
from forethought.certify.bounds.pacbayes import pac_bayes_quadratic, tolstikhin_seldin

BOUNDS: dict[str, Callable[[int, int, float, float], float]] = {
    "occam_binomial": occam_binomial,
    "occam_kl": lambda k, n, bits, delta: occam_kl(k / n, n, bits, delta),
    "hoeffding": lambda k, n, bits, delta: hoeffding(k / n, n, bits, delta),
    "maurer_seeger": lambda k, n, bits, delta: maurer_seeger(k / n, n, bits, delta),
    "mcallester": lambda k, n, bits, delta: mcallester(k / n, n, bits, delta),
    "catoni_fixed": lambda k, n, bits, delta: catoni_fixed(k / n, n, bits, delta, 1.2 * n),
    "quadratic": lambda k, n, bits, delta: pac_bayes_quadratic(k / n, n, bits, delta),
    "tolstikhin_seldin": lambda k, n, bits, delta: tolstikhin_seldin(k / n, n, bits, delta),
}


def check(name: str, n: int, share: float, bits: float, more: float, delta: float) -> None:
    """Move one argument at a time; a relative 1e-9 is left for the numerical inversions."""
    bound, errors = BOUNDS[name], int(share * (n - 1))
    value = bound(errors, n, bits, delta)
    slack = 1e-9 * (1 + abs(value))
    assert value >= errors / n
    assert bound(errors, n, bits + more, delta) >= value - slack
    assert bound(errors + 1, n, bits, delta) >= value - slack
    assert bound(errors, n, bits, delta / 2) >= value - slack
    # The same risk on twice the data: errors and examples grow together, or the risk would change as well.
    assert bound(2 * errors, 2 * n, bits, delta) <= value + slack


CASES = given(
    name=st.sampled_from(sorted(BOUNDS)),
    n=st.integers(20, 100_000),
    share=st.floats(0.0, 1.0),
    bits=st.floats(0.0, 5000.0),
    more=st.floats(0.0, 500.0),
    delta=st.floats(1e-6, 0.5),
)


@settings(deadline=None, max_examples=300)
@CASES
def test_bounds_are_monotone(name: str, n: int, share: float, bits: float, more: float, delta: float) -> None:
    check(name, n, share, bits, more, delta)


@pytest.mark.nightly
@settings(deadline=None, max_examples=10_000)
@CASES
def test_bounds_are_monotone_in_ten_thousand_cases(
    name: str, n: int, share: float, bits: float, more: float, delta: float
) -> None:
    check(name, n, share, bits, more, delta)
