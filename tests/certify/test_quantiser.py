"""The quantiser on grids: by arithmetic what the table of all levels says, and what a message would hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forethought.certify.codes import GridCodebook, assign, kt_bits
from forethought.certify.compress.quantiser import Quantiser
from forethought.certify.decoder import CodebookRecipe
from forethought.core.rng import generator

SEGMENTS = (300, 200)


def numbers() -> torch.Tensor:
    return torch.from_numpy(generator(0, "test.grid").standard_normal(sum(SEGMENTS))).float()


@pytest.mark.parametrize("levels", [2, 5, 6, 15])
def test_a_grid_rounds_to_the_nearest_level_of_each_tensor(levels: int):
    given = numbers()
    quantiser = Quantiser(CodebookRecipe(kind="grid", levels=levels), SEGMENTS, given)
    with torch.no_grad():
        quantiser.values[1] *= 0.25  # far values are cut off at the last level
    values, _ = quantiser(given)
    for piece, own, step in zip(given.split(SEGMENTS), values.detach().split(SEGMENTS), quantiser.values, strict=True):
        book = GridCodebook(levels, float(step.detach().half()))
        expected = book.values[assign(piece.double().numpy(), book)]
        assert np.allclose(own.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_the_bits_of_a_grid_are_near_those_of_the_code():
    given = numbers()
    quantiser = Quantiser(CodebookRecipe(kind="grid", levels=9), SEGMENTS, given)
    with torch.no_grad():
        quantiser.values[1] *= 0.2  # the second tensor's letters have other frequencies than the first's
    _, bits = quantiser(given)
    coded = sum(kt_bits(np.bincount(each.symbols, minlength=9)) for each in quantiser.coded(given))
    assert float(bits) == pytest.approx(coded, rel=0.05)


def test_the_price_on_a_grid_pulls_numbers_to_the_common_level():
    given = torch.tensor([0.0] * 20 + [0.45, 1.0], requires_grad=True)
    quantiser = Quantiser(CodebookRecipe(kind="grid", levels=3), (22,), given)
    with torch.no_grad():
        quantiser.values.fill_(1.0)
    _, bits = quantiser(given)
    bits.backward()
    assert given.grad is not None
    assert given.grad[20] > 0.1
    assert abs(given.grad[0]) < 0.1 * given.grad[20]


def test_gradients_reach_the_step_and_pass_the_rounding():
    given = torch.tensor([-0.9, 0.1, 1.2, 2.1], requires_grad=True)
    quantiser = Quantiser(CodebookRecipe(kind="grid", levels=5), (4,), given)
    with torch.no_grad():
        quantiser.values.fill_(1.0)
    values, _ = quantiser(given)
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    (values * weights).sum().backward()
    assert given.grad is not None
    assert torch.equal(given.grad, weights)
    assert quantiser.values.grad is not None
    assert float(quantiser.values.grad) == -1.0 + 0.0 + 100.0 + 2000.0
