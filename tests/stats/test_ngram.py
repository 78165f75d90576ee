"""Kneser-Ney against a slow dictionary reference, its normalisation, and its document boundaries."""

from __future__ import annotations

import gzip
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core.errors import InputError
from forethought.stats.ngram import KneserNey, unigram_loss

BOS = -1


class SlowKneserNey:
    """Chen and Goodman's definition, one dictionary look-up at a time."""

    def __init__(self, documents: list[list[int]], vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        raw: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
        for document in documents:
            line = [BOS, *document]
            for end in range(1, len(line)):
                for length in range(1, min(order, end + 1) + 1):
                    raw[length][tuple(line[end - length + 1 : end + 1])] += 1
        self.counts: list[dict[tuple[int, ...], int]] = [{} for _ in range(order + 1)]
        self.counts[order] = dict(raw[order])
        for length in range(1, order):
            befores: dict[tuple[int, ...], set[int]] = defaultdict(set)
            for gram in raw[length + 1]:
                befores[gram[1:]].add(gram[0])
            self.counts[length] = {g: c if g[0] == BOS else len(befores[g]) for g, c in raw[length].items()}
        self.discounts = [(0.0, 0.0, 0.0), *(self.discounts_of(self.counts[m]) for m in range(1, order + 1))]

    @staticmethod
    def discounts_of(counts: dict[tuple[int, ...], int]) -> tuple[float, float, float]:
        n = Counter(counts.values())
        if not (n[1] and n[2] and n[3]):
            return 0.5, 1.0, 1.5
        y = n[1] / (n[1] + 2 * n[2])
        d = 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]
        return d if 0 < d[0] <= 1 and 0 < d[1] <= 2 and 0 < d[2] <= 3 else (0.5, 1.0, 1.5)

    def probability(self, context: tuple[int, ...], token: int) -> float:
        """By recursion over ever shorter contexts; `context` starts with BOS where it opens its document."""
        context = context[max(0, len(context) - self.order + 1) :]
        if len(context) == 0:
            below = 1 / self.vocab_size
        else:
            below = self.probability(context[1:], token)
        counts = self.counts[len(context) + 1]
        following = {g[-1]: c for g, c in counts.items() if g[:-1] == context}
        total = sum(following.values())
        if not total:
            return below
        discount = self.discounts[len(context) + 1]
        cut = {w: discount[min(c, 3) - 1] for w, c in following.items()}
        own = following.get(token, 0) - cut.get(token, 0.0)
        return own / total + sum(cut.values()) / total * below


def corpus(seed: int, num_documents: int, vocab_size: int) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    moves = rng.dirichlet(np.full(vocab_size, 0.15), size=vocab_size)
    documents = []
    for _ in range(num_documents):
        line = [int(rng.integers(vocab_size))]
        for _ in range(int(rng.integers(0, 25))):
            line.append(int(rng.choice(vocab_size, p=moves[line[-1]])))
        documents.append(line)
    starts = np.cumsum([0] + [len(d) for d in documents[:-1]])
    return documents, np.concatenate([np.array(d) for d in documents]), starts


@pytest.mark.parametrize(("order", "vocab_size"), [(1, 6), (2, 6), (3, 12), (5, 9)])
def test_equals_the_dictionary_reference(order: int, vocab_size: int) -> None:
    documents, tokens, starts = corpus(1, 25, vocab_size)
    held_out, held_tokens, held_starts = corpus(2, 8, vocab_size)
    slow = SlowKneserNey(documents, vocab_size, order)
    fast = KneserNey(vocab_size=vocab_size, order=order).fit(tokens, starts)
    np.testing.assert_allclose(fast.discounts, slow.discounts[1:])
    expected = [slow.probability((BOS, *d[:i]), d[i]) for d in held_out for i in range(len(d))]
    np.testing.assert_allclose(fast.probabilities(held_tokens, held_starts), expected, rtol=1e-12)
    assert fast.loss(held_tokens, held_starts) == pytest.approx(-np.log(expected).mean())


@given(st.integers(0, 10_000), st.integers(1, 6), st.data())
@settings(deadline=None, max_examples=60)
def test_every_law_sums_to_one(seed: int, order: int, data: st.DataObject) -> None:
    vocab_size = data.draw(st.integers(1, 15))
    documents, tokens, starts = corpus(seed, data.draw(st.integers(1, 12)), vocab_size)
    model = KneserNey(vocab_size=vocab_size, order=order).fit(tokens, starts)
    context = data.draw(st.lists(st.integers(0, vocab_size - 1), max_size=7))
    opens = data.draw(st.booleans())
    law = model.distribution(context, opens_document=opens)
    assert abs(law.sum() - 1) < 1e-9
    assert law.min() > 0
    slow = SlowKneserNey(documents, vocab_size, order)
    given_ = (BOS, *context) if opens else tuple(context)
    np.testing.assert_allclose(law, [slow.probability(given_, w) for w in range(vocab_size)], rtol=1e-10)


def test_a_discount_estimated_as_nothing_leaves_no_word_without_a_share() -> None:
    _, tokens, starts = corpus(410, 7, 2)
    model = KneserNey(vocab_size=2, order=3).fit(tokens, starts)
    assert model.distribution([0]).min() > 0


def test_contexts_do_not_cross_documents() -> None:
    train = np.array([0, 1, 2, 3] * 20)
    model = KneserNey(vocab_size=4, order=3).fit(train)
    joined = model.probabilities([0, 1, 2, 3])
    apart = model.probabilities([0, 1, 2, 3], [0, 2])
    assert apart[2] < 0.5 < joined[2], "token 2 follows 1 surely, but not when a document starts there"
    np.testing.assert_array_equal(apart[:2], joined[:2])
    split = KneserNey(vocab_size=4, order=3).fit(np.arange(80) % 4, np.arange(0, 80, 2))
    assert split.distribution([1])[2] < 0.5, "no training document ever went from 1 to 2"


def test_degenerate_counts_of_counts_fall_back() -> None:
    once_twice_and_ten_times_thrice = np.repeat(np.arange(12), [1, 2] + [3] * 10)
    model = KneserNey(vocab_size=12, order=1).fit(once_twice_and_ten_times_thrice)
    assert model.discounts == [(0.5, 1.0, 1.5)], "the estimate of the second discount is -8"
    assert model.distribution([]).sum() == pytest.approx(1)


def test_documents_shorter_than_the_order_leave_the_longer_ones_empty() -> None:
    model = KneserNey(vocab_size=3, order=4).fit([0, 1, 0, 2], [0, 1, 2, 3])
    assert model.distribution([0, 1], opens_document=True).sum() == pytest.approx(1)
    assert model.loss([0, 1, 2]) < math.inf


def test_unigram_loss_is_the_cross_entropy() -> None:
    train, evaluation = np.array([0, 0, 0, 1]), np.array([0, 1, 2])
    assert unigram_loss(train, evaluation, 3) == pytest.approx(-sum(map(math.log, (4 / 7, 2 / 7, 1 / 7))) / 3)


def test_order_pays_on_real_text(shared_data: Path) -> None:
    text = gzip.decompress((shared_data / "text_small" / "tinyshakespeare.txt.gz").read_bytes())
    tokens = np.frombuffer(text, dtype=np.uint8)[:300_000]
    train, evaluation = tokens[:270_000], tokens[270_000:]
    losses = [KneserNey(vocab_size=256, order=order).fit(train).loss(evaluation) for order in (1, 2, 5)]
    assert losses[0] == pytest.approx(unigram_loss(train, evaluation, 256), abs=0.2)
    assert losses[0] > losses[1] + 0.5
    assert losses[1] > losses[2] + 0.3
    assert 1.3 < losses[2] < 1.9, "nats a character; 5-grams of this play stand near 1.6"


@pytest.mark.parametrize(
    "call",
    [
        lambda: KneserNey(vocab_size=0),
        lambda: KneserNey(vocab_size=3, order=0),
        lambda: KneserNey(vocab_size=3).fit([]),
        lambda: KneserNey(vocab_size=3).fit([0, 3]),
        lambda: KneserNey(vocab_size=3).fit([0, -1]),
        lambda: KneserNey(vocab_size=3).fit([0.5]),
        lambda: KneserNey(vocab_size=3).fit([0, 1], [1]),
        lambda: KneserNey(vocab_size=3).fit([0, 1], [0, 0]),
        lambda: KneserNey(vocab_size=3).fit([0, 1], [0, 2]),
        lambda: KneserNey(vocab_size=3).loss([0]),
        lambda: KneserNey(vocab_size=3).distribution([]),
        lambda: KneserNey(vocab_size=3).distribution([1]),
        lambda: KneserNey(vocab_size=3).fit([0, 1]).loss([0, 7]),
        lambda: KneserNey(vocab_size=3).fit([0, 1]).distribution([9]),
        lambda: unigram_loss([0], [4], 3),
    ],
)
def test_bad_input_is_named(call: object) -> None:
    with pytest.raises(InputError):
        call()  # type: ignore[operator]
