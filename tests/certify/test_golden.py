"""Published figures, the table of the literature and every closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forethought.certify import bit_budget, catoni, certify_given, certify_holdout, kl_inverse, occam_binomial
from forethought.certify.bounds import (
    FREEDMAN_GRID,
    azuma,
    catoni_fixed,
    empirical_bernstein,
    freedman,
    freedman_closed,
    freedman_printed,
    hoeffding,
    maurer_seeger,
    mcallester,
    mcallester_published,
    monte_carlo_pac_bayes,
    occam_kl,
    pac_bayes_lambda,
    pac_bayes_quadratic,
    smoothing_range,
    smoothing_weight,
    subsampled_hoeffding,
    token_price,
    tolstikhin_seldin,
)

LN2 = math.log(2.0)

# errors, n, bits; then Hoeffding, McAllester as published code has it, Maurer-kl, Catoni's grid, Chernoff-kl, binomial.
TABLE = [
    ((0, 60_000, 500), (".0540", ".0548", ".0059", ".0062", ".0058", ".0058")),
    ((600, 60_000, 4_000), (".1621", ".1624", ".0742", ".0745", ".0741", ".0740")),
    ((3_000, 60_000, 2_000), (".1576", ".1580", ".1111", ".1116", ".1110", ".1109")),
    ((200, 1_500, 120), (".3028", ".3099", ".2781", ".2942", ".2740", ".2712")),
    ((29_000, 50_000, 10_000), (".8433", ".8435", ".8096", ".8098", ".8095", ".8094")),
]


@pytest.mark.parametrize(("case", "printed"), TABLE)
def test_table_of_bounds_to_all_printed_digits(case: tuple[int, int, int], printed: tuple[str, ...]) -> None:
    errors, n, bits = case
    risk = errors / n
    found = [
        hoeffding(risk, n, bits, 0.05),
        mcallester_published(risk, n, bits, 0.05),
        maurer_seeger(risk, n, bits, 0.05),
        catoni(risk, n, bits, 0.05),
        occam_kl(risk, n, bits, 0.05),
        occam_binomial(errors, n, bits, 0.05),
    ]
    assert [f"{value:.4f}".removeprefix("0") for value in found] == list(printed)


def test_compressed_imagenet_network_of_zhou_2019() -> None:
    n, bits = 1_281_167, 350 * 1024 * 8
    assert bits == 2_867_200
    assert f"{occam_kl(0.35, n, bits, 0.05):.4f}" == "0.9654"
    assert f"{catoni(0.35, n, bits, 0.05):.4f}" == "0.9654"
    assert f"{maurer_seeger(0.35, n, bits, 0.05):.4f}" == "0.9654"
    assert hoeffding(0.35, n, bits, 0.05) == pytest.approx(1.2307, abs=1e-4), "vacuous and not clipped"


def test_stochastic_network_of_dziugaite_and_roy_2017() -> None:
    bound = maurer_seeger(0.028, 55_000, 5144.0 / LN2, 0.025)
    assert f"{bound:.4f}" == "0.1607"
    assert f"{bound:.3f}" == "0.161", "the figure in print"


def test_budget_planner_figures() -> None:
    assert round(bit_budget(60_000, 0.05, 0.10)) == 1442
    assert round(bit_budget(60_000, 0.04, 0.116)) == 3163
    assert round(bit_budget(1_400, 0.10, 0.30)) == 231
    assert round(bit_budget(1_400, 0.05, 0.20)) == 185
    assert bit_budget(100, 0.3, 0.3) == math.log2(0.05) < 0


@pytest.mark.parametrize("bits", [0, 1, 500, 10_000])
@pytest.mark.parametrize("n", [1, 30, 60_000])
def test_no_mistakes_has_a_closed_form(bits: int, n: int) -> None:
    expected = -math.expm1(-(bits * LN2 + math.log(20)) / n)
    assert occam_binomial(0, n, bits, 0.05) == pytest.approx(expected, rel=1e-13)
    assert occam_kl(0.0, n, bits, 0.05) == pytest.approx(expected, rel=1e-13)
    assert kl_inverse(0.0, 0.25) == pytest.approx(-math.expm1(-0.25), rel=1e-15)


def test_closed_forms_of_the_square_root_family() -> None:
    risk, n, bits, delta = 0.07, 5_000, 130.0, 0.02
    price = bits * LN2 - math.log(delta)
    kl_price = price + math.log(2 * math.sqrt(n))
    half, whole = kl_price / (2 * n), kl_price / n
    assert hoeffding(risk, n, bits, delta, width=3.0) == pytest.approx(risk + 3 * math.sqrt(price / (2 * n)), rel=1e-14)
    assert mcallester(risk, n, bits, delta) == pytest.approx(risk + math.sqrt(half), rel=1e-14)
    expected = risk + math.sqrt((price + math.log(n)) / (2 * n - 1))
    assert mcallester_published(risk, n, bits, delta) == pytest.approx(expected, rel=1e-14)
    assert pac_bayes_quadratic(risk, n, bits, delta) == pytest.approx((math.sqrt(risk + half) + math.sqrt(half)) ** 2)
    expected = risk + math.sqrt(2 * risk * whole) + 2 * whole
    assert tolstikhin_seldin(risk, n, bits, delta) == pytest.approx(expected, rel=1e-14)
    weight = 2 / (1 + math.sqrt(2 * n * risk / kl_price + 1))
    expected = risk / (1 - weight / 2) + kl_price / (n * weight * (1 - weight / 2))
    assert pac_bayes_lambda(risk, n, bits, delta) == pytest.approx(expected, rel=1e-13)
    assert pac_bayes_lambda(risk, n, bits, delta) <= pac_bayes_lambda(risk, n, bits, delta, 0.7 * weight)
    assert pac_bayes_lambda(risk, n, bits, delta) == pytest.approx(pac_bayes_quadratic(risk, n, bits, delta), rel=0.05)
    for temperature in (100.0, 5_000.0):
        exponent = temperature / n * (risk + price / temperature)
        expected = (1 - math.exp(-exponent)) / (1 - math.exp(-temperature / n))
        assert catoni_fixed(risk, n, bits, delta, temperature) == pytest.approx(expected, rel=1e-13)
    both = math.sqrt((bits * LN2 - math.log(0.25 * delta)) / (2 * n)) + math.sqrt(-math.log(0.75 * delta) / (2 * 800))
    assert subsampled_hoeffding(risk, 800, n, bits, delta, share=0.25) == pytest.approx(risk + both, rel=1e-14)


def test_closed_forms_of_the_token_family() -> None:
    n, bits, delta, vocab = 1_000_000, 35_003.0, 0.05, 65
    price = (bits * LN2 + math.log(len(FREEDMAN_GRID) / delta)) / n
    assert token_price(n, bits, delta) == pytest.approx(price, rel=1e-14)
    weight = smoothing_weight(n, bits, delta)
    assert weight == pytest.approx(price / (1 + price), rel=1e-14)
    width = smoothing_range(vocab, weight)
    assert width == pytest.approx(math.log(vocab / weight), rel=1e-14)
    expected = 1.9 + width * math.sqrt((bits * LN2 - math.log(delta)) / (2 * n))
    assert azuma(1.9, n, bits, delta, width=width) == pytest.approx(expected, rel=1e-14)
    # Without the grid it is mean + C range + sqrt(2 C mean A^2); the grid costs less than 1e-4 of the root.
    root = math.sqrt(2 * price * 1.386)
    closed = freedman_closed(1.9, 1.386, n, bits, delta, loss_range=width)
    assert 0 <= closed - (1.9 + price * width + root) <= 1e-4 * root
    printed = freedman_printed(1.907, 1.386, n, bits, delta, vocab_size=vocab)
    assert printed == pytest.approx(2.488, abs=5e-4), "the published shape on the character model of the literature"
    g = (1 + price) * math.log1p(price) - price * math.log(price)
    assert g < math.sqrt(2 * price)
    exact = freedman_printed(1.907, 1.386, n, bits, delta, vocab_size=vocab, exact_g=True)
    assert printed - exact == pytest.approx(math.sqrt(2 * price) - g, rel=1e-9)


def test_constant_losses_have_a_closed_form() -> None:
    """A guess that is always right leaves range C / s with the largest s of the grid."""
    losses = np.full(5_000, 0.5)
    price = token_price(5_000, 100.0, 0.05)
    expected = 0.5 + 4.0 * price / max(FREEDMAN_GRID)
    assert freedman(losses, losses, 100.0, 0.05, loss_range=4.0) == pytest.approx(expected, rel=1e-12)
    expected = 0.5 + 7 * (100 * LN2 + math.log(2 / 0.05)) / (3 * 4_999)
    assert empirical_bernstein(losses, 100.0, 0.05) == pytest.approx(expected, rel=1e-13)


def test_the_order_of_the_bounds_for_one_hypothesis() -> None:
    for errors, n, bits in [(3, 40, 2.0), (200, 1_500, 120.0), (600, 60_000, 4_000.0), (59_000, 60_000, 10.0)]:
        others = certify_given(errors, n, bits, 0.05).others
        assert others["binomial"] <= others["chernoff_kl"] <= others["maurer_kl"] <= others["mcallester"]
        assert others["chernoff_kl"] <= others["hoeffding"]
        assert others["chernoff_kl"] <= others["catoni"]


def test_given_numbers_and_hold_out_in_words() -> None:
    held = certify_given(2_568, 60_000, 3_217, 0.05, trivial=0.9)
    assert held.bound == pytest.approx(0.121, abs=5e-4)
    assert not held.vacuous
    assert "3217 bits" in held.statement
    assert "2568 mistakes" in held.statement
    assert held.to_dict()["others"]["binomial"] == held.bound
    vacuous = certify_given(50, 100, 5_000, 0.05)
    assert vacuous.vacuous
    assert "vacuous" in vacuous.statement
    assert certify_holdout(42, 1_000) == occam_binomial(42, 1_000, 0, 0.05)


def test_sampled_stochastic_predictors_pay_for_their_draws() -> None:
    once = monte_carlo_pac_bayes(0.028, 150_000, 55_000, 5144 / LN2, 0.05)
    assert maurer_seeger(0.028, 55_000, 5144 / LN2, 0.05) < once < 0.165
