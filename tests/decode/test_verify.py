"""R1 and R2: the law of what verification emits is the target's, exactly and on the real path."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decode.tables import Fixed, TableModel, new_request, work_on
from torch import Tensor

from forethought.core.rng import generator
from forethought.decode import (
    Chance,
    SamplingParams,
    Verdict,
    accept_probabilities,
    distribution,
    draw,
    point_mass,
    residual,
    saguaro,
    verify,
)
from forethought.decode.batching.verifier import TargetVerifier
from forethought.decode.draft import Draft
from forethought.decode.law.verify import verify_greedy
from forethought.nn.rows import Rows
from forethought.stats import g_test, holm

Accept = Callable[[Tensor, Tensor, Tensor], Tensor]
SHAPES = [(8, 1), (8, 2), (5, 3), (4, 4), (3, 4), (2, 4), (8, 3)]


def random_laws(rng: np.random.Generator, num_rows: int, vocabulary_size: int, kind: str) -> Tensor:
    """Rows of laws: smooth, with zeros, nearly or wholly deterministic."""
    weights = rng.gamma(0.5, size=(num_rows, vocabulary_size)) + 1e-9
    if kind == "zeros":
        weights *= rng.random(weights.shape) < 0.5
        weights[np.arange(num_rows), rng.integers(vocabulary_size, size=num_rows)] += 0.1
    if kind == "point":
        weights = np.eye(vocabulary_size)[rng.integers(vocabulary_size, size=num_rows)]
    return torch.from_numpy(weights / weights.sum(-1, keepdims=True))


def tree_laws(rng: np.random.Generator, depth: int, vocabulary_size: int, kind: str) -> list[Tensor]:
    """A language model of `depth` + 1 tokens: per depth the laws (V**depth, V) after every prefix."""
    return [random_laws(rng, vocabulary_size**level, vocabulary_size, kind) for level in range(depth + 1)]


def joint(laws: list[Tensor]) -> Tensor:
    """The law over whole sequences of len(laws) tokens."""
    mass = torch.ones(1, dtype=torch.float64)
    for law in laws:
        mass = (mass.unsqueeze(-1) * law).flatten()
    return mass


def emitted_joint(target: list[Tensor], draft: list[Tensor], accept: Accept = accept_probabilities) -> Tensor:
    """The law over sequences of k + 1 tokens, k = len(draft): a draft of k, verified, then filled up by the target.

    Calls the shipped `accept` on every (prefix, token) and the shipped `residual` on every prefix.
    """
    k, size = len(draft), target[0].shape[-1]
    reached = torch.ones(1, dtype=torch.float64)
    done: Tensor = torch.zeros(1, dtype=torch.float64)
    for level in range(k):
        rows = torch.arange(reached.numel()).repeat_interleave(size)
        tokens = torch.arange(size).repeat(reached.numel())
        kept = accept(target[level][rows], draft[level][rows], tokens).view(-1, size)
        proposed = reached.unsqueeze(-1) * draft[level]
        rejected = (proposed * (1.0 - kept)).sum(-1, keepdim=True)
        replaced = rejected * residual(target[level], draft[level])
        done = (done.unsqueeze(-1) * target[level] + replaced).flatten()
        reached = (proposed * kept).flatten()
    return ((done + reached).unsqueeze(-1) * target[k]).flatten()


def lenient(target: Tensor, draft: Tensor, tokens: Tensor) -> Tensor:
    return 0.99 * accept_probabilities(target, draft, tokens)


def random_pair(case: int) -> tuple[list[Tensor], list[Tensor]]:
    rng = generator(20, "test.pairs", case)
    size, k = SHAPES[case % len(SHAPES)]
    kinds = ["smooth", "zeros", "smooth", "point", "zeros"]
    target = tree_laws(rng, k, size, kinds[case % 3])
    draft = tree_laws(rng, k - 1, size, kinds[case % 5])
    return target, [law.clone() for law in target[:k]] if case % 7 == 0 else draft


def test_emitted_law_is_the_targets_for_two_thousand_pairs() -> None:
    worst = 0.0
    for case in range(2000):
        target, draft = random_pair(case)
        worst = max(worst, float((emitted_joint(target, draft) - joint(target)).abs().max()))
    assert worst <= 1e-12


def test_enumeration_catches_an_accept_ratio_one_percent_off() -> None:
    caught = 0
    for case in range(100):
        target, draft = random_pair(case)
        caught += float((emitted_joint(target, draft, lenient) - joint(target)).abs().max()) > 1e-12
    assert caught > 60  # the others are pairs in which a rejected token is replaced by itself or by an equal law


def test_equal_laws_keep_every_token() -> None:
    law = random_laws(generator(1, "test"), 50, 8, "zeros")
    tokens = torch.multinomial(law, 1, generator=torch.Generator().manual_seed(0)).squeeze(-1)
    assert torch.equal(accept_probabilities(law, law, tokens), torch.ones(50, dtype=torch.float64))
    assert torch.equal(residual(law, law), law)


def test_token_outside_its_own_draft_law_is_never_kept() -> None:
    target, draft = point_mass([1], 3), point_mass([0], 3)
    assert accept_probabilities(target, draft, torch.tensor([1])).item() == 0.0
    assert accept_probabilities(draft, draft, torch.tensor([1])).item() == 0.0


def test_residual_gives_the_rejected_token_no_mass() -> None:
    rng = generator(3, "test")
    target, draft = random_laws(rng, 200, 8, "smooth"), random_laws(rng, 200, 8, "smooth")
    replaced = residual(target, draft)
    assert float(replaced[target <= draft].abs().max()) == 0.0
    torch.testing.assert_close(replaced.sum(-1), torch.ones(200, dtype=torch.float64), rtol=0, atol=1e-14)


def midpoints(*edges: Tensor) -> list[tuple[float, float]]:
    """(number, weight) for each interval of [0, 1) between the given edges."""
    cuts = np.unique(np.clip(np.concatenate([[0.0, 1.0], *[edge.numpy().ravel() for edge in edges]]), 0, 1))
    middles = [((low + high) / 2, high - low) for low, high in pairwise(cuts)]
    return [(middle, weight) for middle, weight in middles if middle < 1.0]


@pytest.mark.parametrize("case", range(12))
def test_verify_itself_integrated_over_its_random_numbers(case: int) -> None:
    rng = generator(5, "test.verify", case)
    size, kind = (3, 4)[case % 2], ("smooth", "zeros", "point")[case % 3]
    target, draft = random_laws(rng, 3, size, kind), random_laws(rng, 2, size, "smooth" if case < 6 else "zeros")
    law = torch.zeros(size, size, dtype=torch.float64)
    for first in range(size):
        for second in range(size):
            tokens = torch.tensor([first, second])
            drafted = float(draft[0, first] * draft[1, second])
            kept = accept_probabilities(target[:2], draft, tokens)
            cumulative = [residual(target[0], draft[0]).cumsum(-1), residual(target[1], draft[1]).cumsum(-1)]
            bonus_cuts = midpoints(*cumulative, target[2].cumsum(-1))
            for u0, w0 in midpoints(kept[:1]):
                for u1, w1 in midpoints(kept[1:]):
                    for u2, w2 in bonus_cuts:
                        verdict = verify(target, draft, tokens, Fixed([u0, u1, u2]))  # pyright: ignore
                        add_verdict(law, verdict, tokens, target[1], drafted * w0 * w1 * w2)
    expected = target[0].unsqueeze(-1) * target[1]
    torch.testing.assert_close(law, expected, rtol=0, atol=1e-12)


def add_verdict(law: Tensor, verdict: Verdict, tokens: Tensor, second: Tensor, weight: float) -> None:
    """Add the first two tokens emitted; the target fills up when only one was."""
    if verdict.accepted == 0:
        law[verdict.bonus] += weight * second
    elif verdict.accepted == 1:
        law[tokens[0], verdict.bonus] += weight
    else:
        law[tokens[0], tokens[1]] += weight


def test_number_equal_to_the_ratio_rejects_and_zero_never_accepts_the_impossible() -> None:
    target, draft = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).double(), torch.tensor([[0.5, 0.5]]).double()
    assert verify(target, draft, torch.tensor([0]), Fixed([0.5, 0.0])).accepted == 0  # pyright: ignore
    below = float(np.nextafter(0.5, 0))
    assert verify(target, draft, torch.tensor([0]), Fixed([below, 0.0])).accepted == 1  # pyright: ignore
    impossible = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).double()
    assert verify(impossible, draft, torch.tensor([0]), Fixed([0.0, 0.0])) == Verdict(0, 1)  # pyright: ignore


def test_without_a_draft_the_bonus_is_the_targets() -> None:
    law = torch.tensor([[0.2, 0.8]]).double()
    empty = torch.zeros(0, 2, dtype=torch.float64)
    assert verify(law, empty, torch.zeros(0, dtype=torch.int64), Fixed([0.1])) == Verdict(0, 0)  # pyright: ignore
    assert verify(law, empty, torch.zeros(0, dtype=torch.int64), Fixed([0.3])) == Verdict(0, 1)  # pyright: ignore


def test_draw_never_returns_a_token_without_mass() -> None:
    laws = torch.cat([random_laws(generator(7, "test", kind), 300, 8, "zeros") for kind in range(3)])
    for uniform in (0.0, float(np.nextafter(1.0, 0.0)), 0.5):
        tokens = torch.tensor(draw(laws, [uniform] * len(laws)))
        assert float(laws.gather(-1, tokens.unsqueeze(-1)).min()) > 0.0


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.data(), st.booleans())
def test_greedy_verification_is_verification_of_point_masses(
    targets: list[int], data: st.DataObject, without_laws: bool
) -> None:
    drafted = data.draw(st.lists(st.integers(0, 3), min_size=len(targets) - 1, max_size=len(targets) - 1))
    numbers = data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=len(targets), max_size=len(targets)))
    laws = None if without_laws else point_mass(drafted, 4)
    expected = verify(point_mass(targets, 4), laws, torch.tensor(drafted, dtype=torch.int64), Fixed(numbers))  # pyright: ignore
    assert verify_greedy(targets, drafted) == expected


@pytest.mark.parametrize("case", range(30))
def test_no_laws_are_point_masses_to_the_last_bit(case: int) -> None:
    rng = generator(9, "test.points", case)
    size, k = int(rng.integers(2, 9)), int(rng.integers(1, 5))
    target = random_laws(rng, k + 1, size, ("smooth", "zeros", "point")[case % 3])
    tokens = torch.from_numpy(rng.integers(size, size=k))
    assert torch.equal(
        accept_probabilities(target[:k], None, tokens),
        accept_probabilities(target[:k], point_mass(tokens, size), tokens),
    )
    for seed in range(20):
        with_laws = verify(target, point_mass(tokens, size), tokens, generator(seed, "test"))
        assert verify(target, None, tokens, generator(seed, "test")) == with_laws


def one_step_error(drawn: Tensor, told: Tensor, target: Tensor) -> float:
    """The total variation of what one position emits from the target's law, for drafts drawn and reported so."""
    tokens = torch.arange(len(target))
    rows = len(target), len(target)
    kept = accept_probabilities(target.expand(rows), told.expand(rows), tokens)
    emitted = drawn * kept + (drawn * (1.0 - kept)).sum() * residual(target, told)
    return 0.5 * float((emitted - target).abs().sum())


@pytest.mark.parametrize("constant", [0.7, 0.3])
def test_saguaro_is_exact_with_the_law_it_draws_from_and_no_other(constant: float) -> None:
    rng = generator(2, "test.saguaro")
    for _ in range(20):
        target, draft = random_laws(rng, 2, 8, "smooth")
        drawn = saguaro(draft.unsqueeze(0), 2, constant)[0]
        assert one_step_error(drawn, drawn, target) <= 1e-12
        assert one_step_error(drawn, draft, target) > 1e-3


K, SIZE = 7, 64
WARM = SamplingParams(temperature=0.8)


def position_laws(case: int) -> tuple[Tensor, Tensor]:
    """Logits (K + 1, V) and (K, V) of a target and a draft whose laws depend on the position alone.

    The laws of every fourth pair are peaked, as those of a language model are: there a bias is a large part of what
    little mass the unlikely tokens have. The drafts of every second pair miss tokens of the target.
    """
    rng = generator(11, "test.montecarlo", case)
    logits = (4.0 if case % 4 == 3 else 1.5) * rng.standard_normal((K + 1, SIZE))
    noise = 0.6 * rng.standard_normal((K, SIZE)) - 30.0 * (rng.random((K, SIZE)) < 0.1 * (case % 2))
    return torch.from_numpy(logits).float(), torch.from_numpy(logits[:K] + noise).float()


class PositionModel(TableModel):
    """A PagedModel whose logits depend on the position alone."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(lambda text: logits[len(text) - 1], logits.shape[-1])
        self._by_position = logits

    def logits(self, rows: Rows) -> Tensor:
        return self._by_position[rows.positions_N[rows.logits_M]]


def counted_tokens(case: int, num_tokens: int, change: Callable[[Tensor], Tensor] = lambda law: law) -> np.ndarray:
    """Counts (K + 1, V) of tokens by position, from rounds of draw and the shipped verifier with its own numbers.

    What follows a kept token has its position's law whatever the token was, so every emitted token counts.
    """
    target, draft = position_laws(case)
    verifier = TargetVerifier(PositionModel(target))
    drawn = distribution(draft, WARM)
    told = change(drawn)
    counts = np.zeros((K + 1, SIZE))
    seed = 0
    while counts.sum() < num_tokens:
        request = new_request([0], dataclasses.replace(WARM, seed=(case << 32) + seed))
        chance = Chance(request.params.seed)
        made = Draft(draw(drawn, [chance.draft(1 + place) for place in range(K)]), told)
        judged = verifier.run([work_on(request, made)], {0: made})[0]
        verifier.forget(request)
        for place, token in enumerate([*made.tokens[: judged.accepted], judged.bonus]):
            counts[place, token] += 1
        seed += 1
    return counts


def p_values(case: int, counts: np.ndarray) -> list[float]:
    laws = distribution(position_laws(case)[0], WARM).numpy()
    return [g_test(row, law).p_value for row, law in zip(counts, laws, strict=True) if row.sum() >= 100]


def shifted(law: Tensor) -> Tensor:
    return law.roll(1, dims=0)


def test_monte_carlo_of_the_real_path_has_the_targets_law() -> None:
    values = [value for case in range(2) for value in p_values(case, counted_tokens(case, 5000))]
    assert len(values) >= 10
    assert holm(values).min() > 1e-3


def test_monte_carlo_rejects_rows_off_by_one() -> None:
    assert holm(p_values(0, counted_tokens(0, 3000, shifted))).min() < 1e-6


def test_monte_carlo_rejects_sampling_the_target_instead_of_the_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["forethought.decode.law.verify"], "residual", lambda target_V, draft_V: target_V)
    assert holm(p_values(0, counted_tokens(0, 5000))).min() < 1e-6


def test_monte_carlo_rejects_an_accept_ratio_one_percent_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert holm(p_values(15, counted_tokens(15, 25_000))).min() > 1e-3
    monkeypatch.setattr(sys.modules["forethought.decode.law.verify"], "accept_probabilities", lenient)
    assert holm(p_values(15, counted_tokens(15, 25_000))).min() < 1e-6


@pytest.mark.nightly
@pytest.mark.parametrize("case", range(20))
def test_monte_carlo_of_a_million_tokens(case: int) -> None:
    """Twenty pairs: Holm within a pair, and a twentieth of the level for each."""
    assert holm(p_values(case, counted_tokens(case, 1_000_000))).min() > 1e-3 / 20
