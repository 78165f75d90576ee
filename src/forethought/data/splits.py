"""Which documents train, validate and test: by the hash of their text, with leaks between the splits found.

A document's split depends on nothing but its text, the seed and the shares, so adding documents moves none of the
others. Leaks are near-copies: a held-out document of which more than a share of the word 13-grams stands in a split
that is used before it (training for validation; training and validation for test).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forethought.core import rng
from forethought.core.errors import ConfigError, DataError
from forethought.data.ngrams import Hashes, HashSet, Indices, ngram_hashes
from forethought.data.store import DocumentStore

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST, DROPPED = 0, 1, 2, 3
NGRAM_LENGTH = 13
LeakPolicy = Literal["drop", "report", "refuse"]

_BATCH_BYTES = 2 << 20
_MAX_HELD_OUT_BYTES = 48 << 20
_MAX_EXAMPLES = 20
_SPLIT_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class LeakReport:
    """Overlap of each held-out document with earlier splits, and those above the threshold."""

    documents: NDArray[np.int64]
    overlaps: NDArray[np.float64]
    leaked: NDArray[np.int64]


def assign_splits(
    digests_D2: NDArray[np.uint64], *, validation_share: float, test_share: float, seed: int
) -> tuple[NDArray[np.uint8], str]:
    """Return the split of each document (0 train, 1 validation, 2 test) and the rule used, "hash" or "rank".

    The rule is the hash against fixed thresholds. Where that leaves a wanted split empty (few documents), the documents
    are ranked by the same hash and each split gets its share, but at least one.

    Raises:
        ConfigError: a share is negative or nothing is left to train on.
        DataError: there are fewer documents than splits.
    """
    if min(validation_share, test_share) < 0 or validation_share + test_share >= 1:
        raise ConfigError(
            f"validation_share={validation_share} and test_share={test_share} must be at least 0 and together below 1"
        )
    wanted = [True, validation_share > 0, test_share > 0]
    if len(digests_D2) < sum(wanted):
        names = ", ".join(name for name, want in zip(SPLITS, wanted, strict=True) if want)
        raise DataError(
            f"{len(digests_D2)} distinct document(s) cannot fill {names}; give more text, set a smaller piece_length "
            "or recut_length to cut long documents, or set a share to 0"
        )
    position_D = _mixed(digests_D2[:, 0], seed)
    split_D = np.full(len(position_D), TRAIN, dtype=np.uint8)
    split_D[position_D < test_share + validation_share] = VALIDATION
    split_D[position_D < test_share] = TEST
    if all(np.any(split_D == split) for split in range(3) if wanted[split]):
        return split_D, "hash"
    return _ranked(position_D, validation_share, test_share), "rank"


def find_leaks(
    store: DocumentStore,
    split_D: NDArray[np.uint8],
    threshold: float,
    progress: Progress | None = None,
    *,
    drops: bool = True,
) -> LeakReport:
    """Measure which held-out documents share word 13-grams with an earlier split; memory is bounded for any corpus.

    A document's overlap is the share of its own 13-grams that stand in the earlier split; one of fewer than 13 words
    has none (exact copies were removed before). With `drops`, what leaks into validation will be dropped, so test
    documents are not compared with it.
    """
    found: list[tuple[Indices, NDArray[np.float64]]] = []
    leaked_before = np.empty(0, np.int64)
    total = int(store.lengths().sum())
    for split in (VALIDATION, TEST):
        members = np.flatnonzero(split_D == split)
        earlier_D = (split_D < split) & (split_D != DROPPED)
        earlier_D[leaked_before] = False
        earlier = np.flatnonzero(earlier_D)
        overlaps = [
            _overlaps(store, chunk, earlier, progress and _shifted(progress, total))
            for chunk in _chunks(store, members)
        ]
        found.append((members, np.concatenate([*overlaps, np.empty(0)])))
        leaked_before = members[found[-1][1] > threshold] if drops else members[:0]
    documents = np.concatenate([members for members, _ in found])
    overlap = np.concatenate([values for _, values in found])
    return LeakReport(documents, overlap, documents[overlap > threshold])


def apply_policy(
    store: DocumentStore, split_D: NDArray[np.uint8], leaks: LeakReport, policy: LeakPolicy
) -> NDArray[np.uint8]:
    """Return the splits after the policy: leaked documents are dropped, kept and only reported, or refused.

    Raises:
        DataError: the policy is "refuse" and something leaks, or dropping would empty a split.
    """
    if not len(leaks.leaked) or policy == "report":
        return split_D
    if policy == "refuse":
        source, row = store.place(int(leaks.leaked[0]))
        raise DataError(
            f"{len(leaks.leaked)} held-out document(s) share too many 13-grams with earlier splits, the first from "
            f"{source}, {row}; remove near-copies from the corpus, or set leak_policy to 'drop' or 'report'"
        )
    after_D = split_D.copy()
    after_D[leaks.leaked] = DROPPED
    for split in (VALIDATION, TEST):
        if np.any(split_D == split) and not np.any(after_D == split):
            raise DataError(
                f"every {SPLITS[split]} document is a near-copy of an earlier one; raise its share, raise "
                "leak_threshold, or set leak_policy to 'report'"
            )
    return after_D


def leak_summary(store: DocumentStore, split_D: NDArray[np.uint8], leaks: LeakReport) -> dict[str, Any]:
    """Return the leak check as plain JSON values: counts a split, mean overlap and the worst examples."""
    split_of = split_D[leaks.documents]
    leaked = np.isin(leaks.documents, leaks.leaked)
    worst = np.argsort(-leaks.overlaps, kind="stable")[: min(_MAX_EXAMPLES, int(leaked.sum()))]
    examples = []
    for at in worst:
        source, row = store.place(int(leaks.documents[at]))
        overlap = round(float(leaks.overlaps[at]), 4)
        examples.append({"split": SPLITS[split_of[at]], "source": source, "row": row, "overlap": overlap})
    return {
        "ngram": NGRAM_LENGTH,
        "checked": {SPLITS[s]: int((split_of == s).sum()) for s in (VALIDATION, TEST)},
        "leaked": {SPLITS[s]: int((leaked & (split_of == s)).sum()) for s in (VALIDATION, TEST)},
        "mean_overlap": round(float(leaks.overlaps.mean()), 6) if len(leaks.overlaps) else 0.0,
        "examples": examples,
    }


def _mixed(values: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    mixed = values + np.uint64(rng.derive_seed(seed, "data.splits"))
    for shift, factor in zip((30, 27), _SPLIT_MIX, strict=True):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / (1 << 53)


def _ranked(position_D: NDArray[np.float64], validation_share: float, test_share: float) -> NDArray[np.uint8]:
    total = len(position_D)
    num_test = max(1, round(test_share * total)) if test_share else 0
    num_validation = max(1, round(validation_share * total)) if validation_share else 0
    while num_test + num_validation >= total:
        if num_test > num_validation:
            num_test -= 1
        else:
            num_validation -= 1
    order = np.argsort(position_D, kind="stable")
    split_D = np.full(total, TRAIN, dtype=np.uint8)
    split_D[order[:num_test]] = TEST
    split_D[order[num_test : num_test + num_validation]] = VALIDATION
    return split_D


def _chunks(store: DocumentStore, members: Indices) -> Iterator[Indices]:
    ends = np.cumsum(store.lengths()[members])
    start = 0
    while start < len(members):
        before = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + _MAX_HELD_OUT_BYTES, side="right")))
        yield members[start:end]
        start = end


def _overlaps(store: DocumentStore, chunk: Indices, earlier: Indices, progress: Progress | None) -> NDArray[np.float64]:
    hashes: list[Hashes] = []
    owners: list[Indices] = []
    for numbers, parts in store.batches(chunk, _BATCH_BYTES):
        grams, part_of = ngram_hashes(parts, NGRAM_LENGTH)
        hashes.append(grams)
        owners.append(np.searchsorted(chunk, np.array(numbers, dtype=np.int64))[part_of])
    held_out = np.concatenate([*hashes, np.empty(0, np.uint64)])
    owner = np.concatenate([*owners, np.empty(0, np.int64)])
    known = HashSet(held_out)
    hit = np.zeros(len(known.values) + 1, dtype=bool)
    done = 0
    for _, parts in store.batches(earlier, _BATCH_BYTES):
        hit[known.positions(ngram_hashes(parts, NGRAM_LENGTH)[0])] = True
        done += sum(len(part) for part in parts)
        if progress:
            progress(done, done)
    shared = hit[np.searchsorted(known.values, held_out)]
    counts = np.bincount(owner, minlength=len(chunk))
    shared_counts = np.bincount(owner, weights=shared, minlength=len(chunk))
    return shared_counts / np.maximum(counts, 1)


def _shifted(progress: Progress, total: int) -> Progress:
    return lambda done, _: progress(done, total)
