"""Randomness as a function of its coordinates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core.errors import ConfigError
from forethought.core.rng import derive_seed, generator, torch_generator

WORD = st.integers(0, 2**64 - 1)


def test_the_numbers_are_those_of_every_version() -> None:
    """A change here breaks the resume of every run that somebody started before it."""
    assert generator(0, "a").integers(0, 2**63, 3).tolist() == [
        1199211340340730620,
        5384098608736610022,
        5248335638711395618,
    ]
    assert derive_seed(1, "train.noise", 5, 2) == 458740983472962901
    edge = generator(2**64 - 1, "ü", 2**64 - 1, 7).random(2).tolist()
    assert edge == [0.5809931374174494, 0.4599613490644512]
    assert torch_generator(1, "train.noise", 5, 2).initial_seed() == 458740983472962901


@settings(deadline=None, max_examples=100)
@given(WORD, st.text(max_size=10), WORD, WORD)
def test_a_coordinate_always_gives_the_same_draws(seed: int, stream: str, step: int, index: int) -> None:
    one, two = (generator(seed, stream, step, index).random(5) for _ in range(2))
    assert np.array_equal(one, two)
    assert 0 <= derive_seed(seed, stream, step, index) < 2**63


def test_any_change_of_a_coordinate_gives_other_draws() -> None:
    near = list(itertools.product((0, 1, 2**63), ("a", "b", "", "ab"), (0, 1, 2**40), (0, 1, 2**40)))
    assert len({derive_seed(*where) for where in near}) == len(near)


def test_neighbouring_coordinates_are_uncorrelated_and_uniform() -> None:
    draws = np.array([generator(3, "test", step, index).random(8) for step in range(60) for index in range(60)])
    assert abs(draws.mean() - 0.5) < 5 / np.sqrt(12 * draws.size)
    flat = draws.reshape(60, 60, 8) - 0.5
    for along_steps, along_indices in ((1, 0), (0, 1), (1, 1)):
        moved = np.roll(flat, (along_steps, along_indices), (0, 1))
        assert abs((flat * moved).mean() * 12) < 5 / np.sqrt(draws.size)


def test_draws_of_one_coordinate_never_run_into_the_next() -> None:
    long = generator(3, "test", 4, 0).integers(0, 2**63, 200_000)
    assert not np.isin(generator(3, "test", 4, 1).integers(0, 2**63, 8), long).any()


@pytest.mark.parametrize(("seed", "step", "index"), [(-1, 0, 0), (2**64, 0, 0), (0, -1, 0), (0, 0, -1), (0, 2**64, 0)])
def test_coordinates_out_of_range_are_refused(seed: int, step: int, index: int) -> None:
    with pytest.raises(ConfigError, match=r"2\*\*64 - 1"):
        generator(seed, "a", step, index)


def test_integers_of_numpy_are_integers_and_other_types_are_not() -> None:
    assert derive_seed(np.int64(5), "a") == derive_seed(5, "a")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        derive_seed(5.0, "a")  # type: ignore[arg-type]


def test_a_torch_generator_draws_the_same_and_leaves_the_global_one_alone() -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, two = (torch.randn(4, generator=torch_generator(7, "a", 1)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
