"""Laws and drawings of the native kernels: against plain float64, the same in any batch, filters, edges, refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forethought.core.errors import ForethoughtError, InputError
from forethought.core.rng import generator
from forethought.nn.native.law import NO_FILTERS, LawFilters, draw, has_laws, sample, softmax

pytestmark = pytest.mark.skipif(not has_laws(), reason="the native kernels cannot be compiled here")

# Around whole vectors, groups of them, and stretches of a drawing.
SIZES = (1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 200, 1000, 4096)
FILTERS = (
    NO_FILTERS,
    LawFilters(top_k=3),
    LawFilters(top_k=40),
    LawFilters(top_k=900),
    LawFilters(top_p=0.9),
    LawFilters(top_p=0.9999),
    LawFilters(min_p=0.02),
    LawFilters(min_p=0.001, top_k=60, top_p=0.8),
)


def logits_of(num_rows: int, size: int, seed: int = 0, scale: float = 4.0) -> Tensor:
    values = generator(seed, "law", size).normal(size=(num_rows, size)) * scale
    return torch.from_numpy(values).to(torch.float32)


def reference(logits_MV: Tensor, temperature: float, filters: LawFilters = NO_FILTERS) -> np.ndarray:
    """The filters one after the other on sorted rows, in NumPy's float64."""
    laws = []
    for row in logits_MV.double().numpy():
        scaled = (row - row.max()) / temperature
        order = np.lexsort((np.arange(len(row)), -scaled))
        weights = np.exp(scaled[order])
        kept = scaled[order] >= math.log(filters.min_p) if filters.min_p > 0 else np.ones(len(row), dtype=bool)
        if filters.top_k > 0:
            kept[filters.top_k :] = False
        weights = np.where(kept, weights, 0.0)
        weights /= math.fsum(weights)
        before = np.concatenate([[0.0], np.cumsum(weights)[:-1]])
        if filters.top_p < 1.0:
            weights = np.where((before < filters.top_p * math.fsum(weights)), weights, 0.0)
        law = np.zeros(len(row))
        law[order] = weights / math.fsum(weights)
        laws.append(law)
    return np.array(laws)


def same_law(given_: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(given_.numpy(), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_a_law_is_that_of_float64(size: int) -> None:
    logits = logits_of(5, size)
    for temperature in (0.3, 0.8, 1.0, 2.5):
        for filters in FILTERS:
            expected = reference(logits, temperature, filters)
            same_law(softmax(logits, temperature, filters), expected)
            same_law(softmax(logits.double(), temperature, filters), expected)


def test_the_exponential_is_right_to_the_last_place_over_its_whole_range() -> None:
    # One law for each pair (0, x): the share of x over that of 0 is the exponential itself.
    for x in np.concatenate([np.linspace(-700, -1, 400), -np.geomspace(1e-12, 1, 400)]):
        law = softmax(torch.tensor([[0.0, x]], dtype=torch.float64), 1.0)[0]
        expected = math.exp(x) / (1 + math.exp(x))
        assert abs(float(law[1]) - expected) <= 4e-16 * expected


@pytest.mark.parametrize("size", SIZES)
def test_a_row_has_the_same_bits_alone_and_among_others(size: int) -> None:
    logits = logits_of(19, size, seed=1)
    numbers = generator(2, "numbers").random(19).tolist()
    for filters in FILTERS:
        laws = softmax(logits, 0.8, filters)
        tokens, rounded = sample(logits, 0.8, numbers, filters)
        assert draw(rounded, numbers) == tokens.tolist()
        for row in range(19):
            alone = slice(row, row + 1)
            assert torch.equal(softmax(logits[alone], 0.8, filters), laws[alone])
            assert torch.equal(softmax(logits[row : row + 3], 0.8, filters)[:1], laws[alone])
            assert draw(laws[alone], numbers[alone]) == draw(laws, numbers)[alone]
            token, law = sample(logits[alone], 0.8, numbers[alone], filters)
            assert torch.equal(law, rounded[alone])
            assert token.tolist() == tokens[alone].tolist()


def test_rows_apart_and_across_give_what_rows_in_one_piece_give() -> None:
    wide = logits_of(6, 100, seed=3)
    part, across = wide[::2, 10:77], wide.T[:50]
    numbers = [0.1, 0.5, 0.9]
    assert torch.equal(softmax(part, 0.7), softmax(part.contiguous(), 0.7))
    assert torch.equal(softmax(across, 0.7), softmax(across.contiguous(), 0.7))
    laws = torch.zeros(3, 90, dtype=torch.float64)
    laws[:, :67] = softmax(part, 0.7)
    assert draw(laws[:, :67], numbers) == draw(laws[:, :67].contiguous(), numbers)
    room = torch.full((5, 67), 7.0)
    tokens, law = sample(part, 0.7, numbers, out_MV=room[1:4])
    assert law.data_ptr() == room[1].data_ptr()
    assert torch.equal(law, sample(part.contiguous(), 0.7, numbers)[1])
    assert tokens.tolist() == draw(law, numbers)
    assert bool((room[[0, 4]] == 7.0).all())


@pytest.mark.parametrize("temperature", [0.05, 0.8, 1.0, 30.0])
def test_a_drafts_law_is_near_the_exact_one_and_sums_to_one(temperature: float) -> None:
    logits = logits_of(8, 999, seed=4)
    logits[3, 5:900] = -math.inf
    _, laws = sample(logits, temperature, [0.5] * 8)
    exact = softmax(logits, temperature)
    assert float((laws - exact).abs().max()) < 1e-6
    np.testing.assert_allclose(laws.double().sum(dim=-1).numpy(), 1.0, rtol=0, atol=1e-5)
    assert bool((laws[3, 5:900] == 0.0).all())
    # Where single precision would not do, the exact law is rounded.
    for narrow in (1e-30, 1e30):
        tokens, laws = sample(logits, narrow, [0.5] * 8)
        assert torch.equal(laws, softmax(logits, narrow).float())
        assert tokens.tolist() == draw(laws, [0.5] * 8)


def test_extreme_logits() -> None:
    minus = -math.inf
    rows = torch.tensor([[minus, 3.0, minus, 3.0], [3e38, -3e38, minus, 0.0], [0.0, -50.0, -800.0, minus]])
    laws = softmax(rows, 1.0)
    assert laws[0].tolist() == [0.0, 0.5, 0.0, 0.5]
    assert laws[1].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert laws[2].tolist() == [1.0, math.exp(-50.0), 0.0, 0.0]
    assert softmax(rows, 1e-300)[2].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert softmax(rows[:1], math.inf).tolist() == [[0.0, 0.5, 0.0, 0.5]]
    for filters in FILTERS:
        same_law(softmax(rows, 1.0, filters)[:2], reference(rows[:2], 1.0, filters))
    assert softmax(rows, 1.0, LawFilters(top_p=5e-324)).argmax(dim=-1).tolist() == [1, 0, 0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_bad_logit_anywhere_is_an_error(size: int, dtype: torch.dtype) -> None:
    for place in range(0, size, 1 if size < 100 else 37):
        for value in (math.nan, math.inf):
            logits = logits_of(2, size, scale=1.0).to(dtype)
            logits[1, place] = value
            with pytest.raises(ForethoughtError, match="damaged"):
                softmax(logits, 0.8)
            with pytest.raises(ForethoughtError, match="damaged"):
                sample(logits, 0.8, [0.5, 0.5])
    with pytest.raises(ForethoughtError, match="damaged"):
        softmax(torch.full((1, size), -math.inf, dtype=dtype), 0.8)


def test_of_equals_at_an_edge_the_lowest_ids_stay() -> None:
    equal = torch.zeros(2, 300)
    for count in (1, 5, 64, 299):
        kept = softmax(equal, 0.8, LawFilters(top_k=count)) > 0
        assert kept.sum(dim=-1).tolist() == [count, count]
        assert bool(kept[:, :count].all())
    halves = softmax(equal[:, :256], 0.8, LawFilters(top_p=0.5))
    assert halves[0].nonzero().flatten().tolist() == list(range(128))
    assert bool((halves[0, :128] == 1 / 128).all())


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(-9, 9), min_size=1, max_size=80),
    st.sampled_from([0, 1, 2, 5, 17, 70]),
    st.sampled_from([1.0, 0.97, 0.6, 0.13]),
    st.sampled_from([0.0, 0.013, 0.21]),
)
def test_filters_with_many_equals(values: list[int], top_k: int, top_p: float, min_p: float) -> None:
    logits = torch.tensor([values], dtype=torch.float32) / 3
    filters = LawFilters(min_p, top_k, top_p)
    same_law(softmax(logits, 1.3, filters), reference(logits, 1.3, filters))


def drawn_by_hand(law: Sequence[float], uniform: float) -> int:
    """The first token at which the cumulative law passes uniform * total, in whole numbers."""
    goal, reached = uniform * sum(law), 0.0
    return next(token for token, mass in enumerate(law) if (reached := reached + mass) > goal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_a_draw_is_where_the_cumulative_law_passes(size: int, dtype: torch.dtype) -> None:
    # Small whole numbers: every sum is exact in any order, so the edges themselves are decided.
    weights = generator(5, "weights", size).integers(0, 4, size=(9, size))
    weights[:, size // 2] = 1
    weights[0] = 1
    for row in weights.tolist():
        total = sum(row)
        for unit in {0, 1, total // 3, total // 2, total - 1}:
            if unit < total:
                law = torch.tensor([row], dtype=dtype)
                assert draw(law, [unit / total]) == [drawn_by_hand(row, unit / total)]
    laws = torch.from_numpy(weights).to(dtype)
    numbers = generator(6, "numbers").random(9).tolist()
    expected = [drawn_by_hand(row, number) for row, number in zip(weights.tolist(), numbers, strict=True)]
    assert draw(laws, numbers) == expected


def test_no_token_without_mass_is_drawn_at_any_number() -> None:
    for size in SIZES[2:]:
        laws = softmax(logits_of(6, size, seed=7), 0.8, LawFilters(top_k=max(1, size // 3)))
        laws[:, 0] = laws[:, -1] = laws[:, size // 2] = 0.0
        laws[:, 1] += 1e-30
        for kind in (laws, laws.float()):
            for number in (0.0, 5e-324, 0.3, 1.0 - 2.0**-53, 1.0):
                chosen = draw(kind, [number] * 6)
                assert all(float(row[token]) > 0.0 for row, token in zip(kind, chosen, strict=True))
    ends = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    assert [draw(ends, [number])[0] for number in (0.0, 0.2499, 0.25, 1.0 - 2.0**-53)] == [1, 1, 3, 3]


def test_tokens_come_as_often_as_their_law_says() -> None:
    logits = logits_of(1, 200, seed=8, scale=1.5).expand(4000, 200)
    numbers = generator(9, "often").random(4000).tolist()
    tokens, laws = sample(logits, 0.8, numbers)
    counts, expected = np.bincount(tokens, minlength=200), 4000 * laws[0].double().numpy()
    often = expected > 5
    statistic = float((((counts - expected) ** 2) / expected)[often].sum())
    assert statistic < often.sum() + 5 * math.sqrt(2 * often.sum())


def test_what_cannot_be_a_law_is_refused() -> None:
    with pytest.raises(InputError, match="temperature 0"):
        softmax(torch.zeros(1, 3), 0.0)
    for strange in (torch.zeros(3), torch.zeros(1, 0), torch.zeros(2, 3, dtype=torch.float16)):
        with pytest.raises(InputError, match="float32 or float64"):
            softmax(strange, 1.0)
    with pytest.raises(InputError, match="for 2 rows"):
        draw(torch.ones(2, 3), [0.5])
    with pytest.raises(InputError, match="law 1 has no mass"):
        draw(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), [0.5, 0.5])
    with pytest.raises(InputError, match="law 0 has no mass"):
        draw(torch.tensor([[1.0, math.nan]]), [0.5])
    for room in (torch.zeros(1, 3), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3, 2).T):
        with pytest.raises(InputError, match="give"):
            sample(torch.zeros(2, 3), 1.0, [0.5, 0.5], out_MV=room)
    assert softmax(torch.zeros(0, 3), 1.0).shape == (0, 3)
    assert draw(torch.zeros(0, 3), []) == []
