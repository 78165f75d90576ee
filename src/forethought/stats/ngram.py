"""Baseline language models over token ids: the unigram, and interpolated modified Kneser-Ney of any order.

Shapes: N positions, V tokens. An n-gram is known by the rank of its key in a sorted array; its key is the rank of its
first n - 1 tokens times (V + 1), plus its last token, so 64 bits hold any order. Token V stands before every document
and is never predicted; no context reaches past it into another document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.core.errors import InputError

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
_ABSENT = -1


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length: sorted keys, the discounted share each has, and by context the mass handed down."""

    keys: Ids
    shares: Floats
    backoff: Floats


def unigram_loss(train_tokens: ArrayLike, eval_tokens: ArrayLike, vocab_size: int) -> float:
    """Return the loss in nats a token of the add-one unigram law of the training tokens.

    Raises:
        InputError: no tokens, or one outside the vocabulary.
    """
    train, evaluation = _tokens(train_tokens, vocab_size), _tokens(eval_tokens, vocab_size)
    logs = np.log((np.bincount(train, minlength=vocab_size) + 1.0) / (len(train) + vocab_size))
    return -float(logs[evaluation].mean())


class KneserNey:
    """An interpolated n-gram model with three discounts an order (Chen & Goodman 1999, modified Kneser-Ney).

    Every conditional law sums to 1 over the vocabulary and gives no token probability 0.
    """

    def __init__(self, vocab_size: int, order: int = 5) -> None:
        """Make an unfitted model.

        Raises:
            InputError: the vocabulary is empty or the order below 1.
        """
        if vocab_size < 1 or order < 1:
            raise InputError(f"vocab_size {vocab_size} and order {order} must both be at least 1")
        self.vocab_size = vocab_size
        self.order = order
        self.discounts: list[tuple[float, float, float]] = []
        self._unigram_V: Floats = np.zeros(0)
        self._orders: list[_Order] = []

    def fit(self, train_tokens: ArrayLike, document_starts: ArrayLike | None = None) -> KneserNey:
        """Count a corpus and return the model itself.

        train_tokens: (N,) ids. document_starts: rising offsets, the first 0; None means one document.

        Raises:
            InputError: no tokens, one outside the vocabulary, or the starts are not rising offsets from 0.
        """
        tokens, depths = _padded(_tokens(train_tokens, self.vocab_size), document_starts, self.vocab_size)
        base = self.vocab_size + 1
        self.discounts, self._orders = [], []
        keys, grams = np.arange(base), tokens
        raw = np.bincount(tokens[depths > 0], minlength=base)
        opens = np.zeros(base, dtype=bool)
        for length in range(1, self.order):
            positions = np.flatnonzero(depths >= length)
            longer_keys, ranks, longer_raw = _ranked(grams[positions - 1] * base + tokens[positions])
            an_occurrence = np.empty(len(longer_keys), dtype=np.int64)
            an_occurrence[ranks] = positions
            # A lower order counts the different tokens seen before an n-gram; one that opens a document has none.
            continuations = np.bincount(grams[an_occurrence], minlength=len(keys))
            self._add_order(length, keys, np.where(opens, raw, continuations))
            opens = depths[an_occurrence] == length
            keys, raw = longer_keys, longer_raw
            grams = np.full(len(tokens), _ABSENT, dtype=np.int64)
            grams[positions] = ranks
        self._add_order(self.order, keys, raw)
        return self

    def loss(self, eval_tokens: ArrayLike, document_starts: ArrayLike | None = None) -> float:
        """Return the mean loss of the tokens in nats.

        Raises:
            InputError: the model is not fitted, no tokens, or one outside the vocabulary.
        """
        return -float(np.log(self.probabilities(eval_tokens, document_starts)).mean())

    def probabilities(self, eval_tokens: ArrayLike, document_starts: ArrayLike | None = None) -> Floats:
        """Return the probability (N,) of every token given what stands before it in its document.

        Raises:
            InputError: the model is not fitted, no tokens, or one outside the vocabulary.
        """
        self._check_fitted()
        tokens, depths = _padded(_tokens(eval_tokens, self.vocab_size), document_starts, self.vocab_size)
        predicted = np.flatnonzero(depths > 0)
        result = np.zeros(len(tokens))
        result[predicted] = self._unigram_V[tokens[predicted]]
        grams = tokens
        for level in self._orders:
            # No n-gram ends in the marker, so a chain of look-ups breaks at the start of every document by itself.
            positions = np.flatnonzero(grams[:-1] >= 0) + 1
            before = grams[positions - 1]
            grams = np.full(len(tokens), _ABSENT, dtype=np.int64)
            grams[positions] = found = _find(level.keys, before * (self.vocab_size + 1) + tokens[positions])
            share = np.zeros(len(positions))
            share[found >= 0] = level.shares[found[found >= 0]]
            result[positions] = share + level.backoff[before] * result[positions]
        return result[predicted]

    def distribution(self, context: Sequence[int], *, opens_document: bool = False) -> Floats:
        """Return the law (V,) of the token after a context; `opens_document` says that nothing stood before it.

        Raises:
            InputError: the model is not fitted, or a token is outside the vocabulary.
        """
        self._check_fitted()
        kept = list(context)
        if len(kept) > self.order - 1:
            kept, opens_document = kept[len(kept) - self.order + 1 :], False
        if not kept and not opens_document:
            return self._unigram_V.copy()
        if opens_document:
            documents = np.array([[*kept, token] for token in range(self.vocab_size)])
            starts = np.arange(self.vocab_size) * documents.shape[1]
            return self.probabilities(documents.ravel(), starts).reshape(self.vocab_size, -1)[:, -1]
        return self._inside(np.array(kept, dtype=np.int64))

    def _inside(self, context: Ids) -> Floats:
        """The law after a context that does not open its document: every suffix of it in turn, shortest first."""
        _tokens(context, self.vocab_size)
        law, base = self._unigram_V.copy(), self.vocab_size + 1
        for length in range(1, len(context) + 1):
            rank = int(context[len(context) - length])
            for depth in range(1, length):
                key = np.array([rank * base + int(context[len(context) - length + depth])])
                rank = int(_find(self._orders[depth - 1].keys, key)[0]) if rank >= 0 else _ABSENT
            if rank < 0:
                break
            level = self._orders[length - 1]
            first, last = np.searchsorted(level.keys, [rank * base, (rank + 1) * base])
            law *= level.backoff[rank]
            law[level.keys[first:last] % base] += level.shares[first:last]
        return law

    def _check_fitted(self) -> None:
        if not len(self._unigram_V):
            raise InputError("the n-gram model is not fitted; call fit(train_tokens, document_starts) first")

    def _add_order(self, length: int, keys: Ids, counts: Ids) -> None:
        discounts = _discounts(counts)
        self.discounts.append(discounts)
        cut = np.array([0.0, *discounts])[np.minimum(counts, 3)]
        if length == 1:
            total = float(counts.sum())
            uniform = cut.sum() / total / self.vocab_size
            self._unigram_V = ((counts - cut) / total + uniform)[: self.vocab_size]
            return
        contexts = keys // (self.vocab_size + 1)
        num_contexts = len(self._orders[-1].keys) if self._orders else self.vocab_size + 1
        totals = np.bincount(contexts, weights=counts, minlength=num_contexts)
        handed = np.bincount(contexts, weights=cut, minlength=num_contexts)
        # A context that was never followed by anything hands everything down.
        backoff = np.divide(handed, totals, out=np.ones(num_contexts), where=totals > 0)
        self._orders.append(_Order(keys, (counts - cut) / totals[contexts], backoff))


def _discounts(counts: Ids) -> tuple[float, float, float]:
    """The three discounts from the counts of counts; where those are degenerate, fixed ones."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return _FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2.0 * n2)
    d1, d2, d3 = 1.0 - 2.0 * y * n2 / n1, 2.0 - 3.0 * y * n3 / n2, 3.0 - 4.0 * y * n4 / n3
    # A discount of 0 would leave words that never followed without any share.
    if not (0 < d1 <= 1 and 0 < d2 <= 2 and 0 < d3 <= 3):
        return _FALLBACK_DISCOUNTS
    return d1, d2, d3


def _ranked(keys: Ids) -> tuple[Ids, Ids, Ids]:
    """Return the sorted unique keys, the rank of each key, and the counts."""
    order = np.argsort(keys, kind="stable")
    arranged = keys[order]
    is_new = np.empty(len(keys), dtype=bool)
    is_new[:1] = True
    np.not_equal(arranged[1:], arranged[:-1], out=is_new[1:])
    starts = np.flatnonzero(is_new)
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[order] = np.cumsum(is_new) - 1
    return arranged[starts], ranks, np.diff(np.append(starts, len(keys)))


def _find(keys: Ids, wanted: Ids) -> Ids:
    """Return the rank of each wanted key, or -1."""
    if not len(keys):
        return np.full(len(wanted), _ABSENT, dtype=np.int64)
    ranks = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[ranks] == wanted, ranks, _ABSENT)


def _padded(tokens: Ids, document_starts: ArrayLike | None, marker: int) -> tuple[Ids, Ids]:
    """Put the marker before every document; return the tokens and the distance of each from its marker."""
    starts = np.zeros(1, dtype=np.int64) if document_starts is None else np.asarray(document_starts, dtype=np.int64)
    rising = starts.ndim == 1 and len(starts) > 0 and starts[0] == 0 and bool((np.diff(starts) > 0).all())
    if not rising or starts[-1] >= len(tokens):
        raise InputError(
            f"document_starts must be offsets that rise from 0 to below {len(tokens)}; leave empty ones out"
        )
    padded = np.insert(tokens, starts, marker)
    marks = starts + np.arange(len(starts))
    lengths = np.diff(np.append(marks, len(padded)))
    return padded, np.arange(len(padded)) - np.repeat(marks, lengths)


def _tokens(values: ArrayLike, vocab_size: int) -> Ids:
    array = np.asarray(values)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise InputError(f"tokens must be a non-empty list of ids; given shape {array.shape} of {array.dtype}")
    if int(array.min()) < 0 or int(array.max()) >= vocab_size:
        raise InputError(f"a token id lies outside 0 to {vocab_size - 1}; train and evaluate with one tokenizer")
    return array.astype(np.int64)
