"""R1 and R2: the law of what verification emits is the target's, exactly and on the real path."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from forethought.core.rng import generator
from forethought.decode import Verdict, accept_probabilities, draw, residual, verify
from forethought.decode.sampling import point_mass

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


class Scripted:
    """A generator that gives chosen numbers."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = numbers

    def random(self, count: int) -> np.ndarray:
        assert count == len(self.numbers), "verify draws one number a drafted token and one for the bonus"
        return np.array(self.numbers)


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
                        verdict = verify(target, draft, tokens, Scripted(u0, u1, u2))  # pyright: ignore
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
    assert verify(target, draft, torch.tensor([0]), Scripted(0.5, 0.0)).accepted == 0  # pyright: ignore
    below = float(np.nextafter(0.5, 0))
    assert verify(target, draft, torch.tensor([0]), Scripted(below, 0.0)).accepted == 1  # pyright: ignore
    impossible = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).double()
    assert verify(impossible, draft, torch.tensor([0]), Scripted(0.0, 0.0)) == Verdict(0, 1)  # pyright: ignore


def test_without_a_draft_the_bonus_is_the_targets() -> None:
    law = torch.tensor([[0.2, 0.8]]).double()
    empty = torch.zeros(0, 2, dtype=torch.float64)
    assert verify(law, empty, torch.zeros(0, dtype=torch.int64), Scripted(0.1)) == Verdict(0, 0)  # pyright: ignore
    assert verify(law, empty, torch.zeros(0, dtype=torch.int64), Scripted(0.3)) == Verdict(0, 1)  # pyright: ignore


def test_draw_never_returns_a_token_without_mass() -> None:
    laws = torch.cat([random_laws(generator(7, "test", kind), 300, 8, "zeros") for kind in range(3)])
    for uniform in (0.0, float(np.nextafter(1.0, 0.0)), 0.5):
        tokens = torch.tensor(draw(laws, [uniform] * len(laws)))
        assert float(laws.gather(-1, tokens.unsqueeze(-1)).min()) > 0.0


def g_test(counts: np.ndarray, law: np.ndarray) -> float:
    """The p-value of the likelihood-ratio test; cells that expect fewer than 5 are pooled."""
    expected = law * counts.sum()
    assert counts[expected == 0.0].sum() == 0
    small = expected < 5
    pooled_counts = np.append(counts[~small], counts[small].sum())
    pooled = np.append(expected[~small], expected[small].sum())
    keep = pooled > 0
    return float(stats.power_divergence(pooled_counts[keep], pooled[keep], lambda_="log-likelihood").pvalue)


def simulated_first_tokens(case: int, num_rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the first emitted token over rounds of draw and verify, and the law they should have."""
    rng = generator(11, "test.montecarlo", case)
    size, k = 64, 3
    target, draft = random_laws(rng, k + 1, size, "smooth"), random_laws(rng, k, size, ("smooth", "zeros")[case % 2])
    counts = np.zeros(size)
    uniforms = rng.random((num_rounds, k))
    for step in range(num_rounds):
        tokens = draw(draft, uniforms[step].tolist())
        verdict = verify(target, draft, torch.tensor(tokens), generator(12, "test.verify", step, case))
        counts[tokens[0] if verdict.accepted else verdict.bonus] += 1
    return counts, target[0].numpy()


def test_monte_carlo_of_the_real_path_has_the_targets_law() -> None:
    p_values = sorted(g_test(*simulated_first_tokens(case, 2500)) for case in range(3))
    assert all(p > 1e-3 / (len(p_values) - rank) for rank, p in enumerate(p_values)), p_values  # Holm


def test_monte_carlo_rejects_sampling_the_target_instead_of_the_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["forethought.decode.verify"], "residual", lambda target_V, draft_V: target_V)
    assert g_test(*simulated_first_tokens(0, 2500)) < 1e-6
