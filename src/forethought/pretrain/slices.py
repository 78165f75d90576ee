"""Parts of a split as splits of their own: the first D training tokens, and disjoint held-out slices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from forethought.core.errors import DataError
from forethought.data import Corpus, TokenDataset


def part_of(dataset: TokenDataset, start: int, stop: int) -> TokenDataset:
    """Return the tokens [start, stop) of a split; bytes are taken in proportion.

    Raises:
        DataError: the split holds fewer tokens than that, or the part is empty.
    """
    if not 0 <= start < stop <= dataset.num_tokens:
        raise DataError(
            f"{dataset.path} holds {dataset.num_tokens:,} tokens, and those from {start:,} to {stop:,} were asked for; "
            "give more text, a larger share for this split, or ask for fewer tokens"
        )
    starts = np.asarray(dataset.document_starts)
    inside = starts[(starts > start) & (starts < stop)] - start
    starts = np.concatenate((np.zeros(1, np.int64), inside))
    share = (stop - start) / dataset.num_tokens
    facts = replace(
        dataset.facts,
        num_tokens=stop - start,
        num_documents=len(starts),
        num_bytes=round(dataset.num_bytes * share),
        tokens_sha256="",
    )
    return TokenDataset(dataset.path, facts, dataset.tokens[start:stop], starts)


def held_out_slices(corpus: Corpus, num_tokens: int) -> dict[str, TokenDataset]:
    """Return three disjoint held-out slices of at most `num_tokens` each.

    "tune" chooses settings, "weights" fits ensemble weights (both from validation), "report" is the front of the test
    split, which nothing is chosen by.

    Raises:
        DataError: a held-out split is too small to be parted.
    """
    half = min(num_tokens, corpus.validation.num_tokens // 2)
    if half < 1 or corpus.test.num_tokens < 1:
        raise DataError(
            f"{corpus.path} holds {corpus.validation.num_tokens} validation and {corpus.test.num_tokens} test tokens, "
            "too few to tune on one slice and report on another; prepare it with larger shares or more text"
        )
    return {
        "tune": part_of(corpus.validation, 0, half),
        "weights": part_of(corpus.validation, half, 2 * half),
        "report": part_of(corpus.test, 0, min(num_tokens, corpus.test.num_tokens)),
    }


def training_part(corpus: Corpus, num_tokens: int, *, window: int, rows: int) -> TokenDataset:
    """Return the first `num_tokens` of the training split (0: all), which must fill at least one batch.

    Raises:
        DataError: the split is smaller than asked for, or than one batch.
    """
    dataset = corpus.train if not num_tokens else part_of(corpus.train, 0, num_tokens)
    if dataset.num_tokens < window * rows:
        raise DataError(
            f"{corpus.path} gives {dataset.num_tokens:,} training tokens, fewer than one batch of {rows} windows of "
            f"{window} tokens ({rows * window:,}); give more text, or lower batch_size or context"
        )
    return dataset
