"""Slots: the vectors of the theorem, the integer optimum by brute force, and histograms that learn."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core.errors import ArtefactError, InputError
from forethought.lookahead import OutcomeHistogram, capped_geometric, empirical, geometric, geometric_ideal, uniform


@pytest.mark.parametrize(
    ("acceptance", "vector"),
    [
        (0.6, [6.1, 4.7, 3.6, 2.8, 2.2, 1.7, 1.3, 1.6]),
        (0.8, [3.9, 3.5, 3.1, 2.8, 2.5, 2.2, 2.0, 4.0]),
        (0.87, [3.2, 3.0, 2.8, 2.6, 2.4, 2.3, 2.1, 5.5]),
        (0.92, [2.7, 2.6, 2.5, 2.4, 2.3, 2.2, 2.1, 7.2]),
    ],
)
def test_the_theorem_s_vectors(acceptance: float, vector: list[float]) -> None:
    ideal = geometric_ideal(acceptance, 7, 24)
    np.testing.assert_allclose(ideal, vector, atol=0.051)
    assert sum(ideal) == pytest.approx(24)
    whole = geometric(acceptance, 7, 24)
    assert sum(whole) == 24
    assert all(abs(a - b) < 1 for a, b in zip(whole, ideal, strict=True))
    assert ideal[7] / ideal[0] == pytest.approx(acceptance**3.5 * (1 - acceptance) ** -0.5), "the cap term"


def splits(num_groups: int, budget: int, minimum: int) -> list[tuple[int, ...]]:
    choices = itertools.product(range(minimum, budget + 1), repeat=num_groups)
    return [slots for slots in choices if sum(slots) == budget]


@given(st.floats(0, 1), st.integers(0, 3), st.integers(0, 9), st.floats(0.2, 3))
@settings(deadline=None, max_examples=150)
def test_geometric_is_the_integer_optimum(acceptance: float, length: int, budget: int, r: float) -> None:
    slots = geometric(acceptance, length, budget, r)
    assert sum(slots) == budget
    shares = capped_geometric(acceptance, length)
    assert sum(shares) == pytest.approx(1)
    first = 0.0 if budget > length else 1.0  # where not every group can have a slot, a first one counts as a hit

    def value(candidate: tuple[int, ...]) -> float:
        return sum(p * (first + 1 - f**-r) for p, f in zip(shares, candidate, strict=True) if f)

    assert min(slots) >= (budget > length)
    every = splits(length + 1, budget, int(budget > length))
    assert value(tuple(slots)) == pytest.approx(max(map(value, every)), abs=1e-12)


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_empirical_is_the_integer_optimum_of_falling_histograms(data: st.DataObject) -> None:
    num_groups, num_ranks = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    counts = np.array(data.draw(st.lists(st.integers(0, 20), min_size=num_groups, max_size=num_groups)), dtype=float)
    row = st.lists(st.integers(0, 20), min_size=num_ranks, max_size=num_ranks)
    ranks = -np.sort(-np.array(data.draw(st.lists(row, min_size=num_groups, max_size=num_groups)), dtype=float), axis=1)
    beyond = np.array(data.draw(st.lists(st.integers(0, 9), min_size=num_groups, max_size=num_groups)), dtype=float)
    budget = data.draw(st.integers(0, 8))
    slots = empirical(counts, ranks, budget, beyond=beyond)
    assert sum(slots) == budget

    def value(candidate: tuple[int, ...]) -> float:
        seen = np.maximum(ranks.sum(1) + beyond, 1)
        share = counts / max(counts.sum(), 1)
        return float(sum(share[g] * ranks[g, :f].sum() / seen[g] for g, f in enumerate(candidate)))

    assert value(tuple(slots)) == pytest.approx(max(map(value, splits(num_groups, budget, 0))), abs=1e-12)


def test_empirical_smooths_a_gap_in_the_ranks() -> None:
    assert empirical([10, 10], [[5, 0, 5], [4, 1, 0]], 4) == [3, 1], "rank 2 of group 0 is not out of reach"


def test_empirical_without_evidence_spreads_out() -> None:
    assert empirical([0, 0, 0], np.zeros((3, 2)), 6) == [2, 2, 2]
    assert empirical([9, 1], [[9, 0], [1, 0]], 6, minimum=1) == [5, 1]
    assert empirical([9, 0], [[9, 1], [0, 0]], 5, minimum=2)[1] == 2


def test_uniform() -> None:
    assert uniform(3, 8) == [3, 3, 2]
    assert uniform(2, 0) == [0, 0]


def test_histogram_forgets_and_survives_json() -> None:
    histogram = OutcomeHistogram(2, 3, decay=0.5)
    for group, rank in [(0, 0), (0, 1), (1, 2), (1, None), (1, 7)]:
        histogram.record(group, rank)
    np.testing.assert_allclose(histogram.rank_histograms, [[1 / 16, 1 / 8, 0], [0, 0, 1 / 4]])
    np.testing.assert_allclose(histogram.beyond, [0, 1.5])
    np.testing.assert_allclose(histogram.outcome_counts, [3 / 16, 1.75])
    again = OutcomeHistogram.from_dict(json.loads(json.dumps(histogram.to_dict())))
    for one in (histogram, again):
        one.record(0, 0)
    np.testing.assert_array_equal(again.rank_histograms, histogram.rank_histograms)
    for _ in range(2000):
        histogram.record(0, 0)
    np.testing.assert_allclose(histogram.outcome_counts, [2, 0], atol=1e-9)


def test_hit_probability_is_what_the_slots_would_have_caught() -> None:
    rng = np.random.default_rng(0)
    histogram = OutcomeHistogram(3, 4)
    assert histogram.hit_probability([1, 1, 1]) == 0
    outcomes = [(int(rng.integers(3)), int(rng.geometric(0.4)) - 1) for _ in range(400)]
    for group, rank in outcomes:
        histogram.record(group, rank)
    slots = [3, 0, 1]
    assert histogram.hit_probability(slots) == pytest.approx(np.mean([rank < slots[group] for group, rank in outcomes]))
    best = empirical(histogram.outcome_counts, histogram.rank_histograms, 6, beyond=histogram.beyond)
    assert histogram.hit_probability(best) >= histogram.hit_probability(uniform(3, 6))


@pytest.mark.parametrize(
    "call",
    [
        lambda: uniform(0, 3),
        lambda: uniform(2, -1),
        lambda: geometric(1.5, 3, 8),
        lambda: geometric(0.5, 3, 8, r=0),
        lambda: geometric_ideal(0.5, -1, 8),
        lambda: geometric_ideal(0.5, 2, 8, r=-1),
        lambda: empirical([1, 2], [[1]], 3),
        lambda: empirical([1, -2], [[1], [1]], 3),
        lambda: OutcomeHistogram(0, 1),
        lambda: OutcomeHistogram(1, 1, decay=0),
        lambda: OutcomeHistogram(1, 1).record(1, 0),
        lambda: OutcomeHistogram(1, 1).record(0, -1),
        lambda: OutcomeHistogram(1, 1).hit_probability([1, 1]),
    ],
)
def test_bad_input_is_named(call: object) -> None:
    with pytest.raises(InputError):
        call()  # type: ignore[operator]


def test_bad_artefacts_are_named() -> None:
    with pytest.raises(ArtefactError):
        OutcomeHistogram.from_dict({"counts": [1, 2]})
    good = OutcomeHistogram(2, 3).to_dict()
    for change in ({"counts": [[[1.0]]]}, {"counts": [[math.nan, 1.0]]}, {"counts": [[-1.0, 1.0]]}, {"weight": 0.0}):
        with pytest.raises(ArtefactError, match="not an outcome histogram"):
            OutcomeHistogram.from_dict({**good, **change})
