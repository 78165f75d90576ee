"""Splits by text hash, exact duplicates, and the 13-gram leak check against a plain reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core import rng
from forethought.core.errors import ConfigError, DataError
from forethought.data import splits, train_tokenizer
from forethought.data.formats import Document
from forethought.data.ngrams import HashSet, ngram_hashes, word_hashes
from forethought.data.store import DocumentStore, text_digest

WORDS = [f"word{i}" for i in range(3000)]


def _prose(name: str, count: int) -> str:
    return " ".join(WORDS[i] for i in rng.generator(1, name).integers(0, len(WORDS), count))


def _store(path: Path, texts: Sequence[str]) -> DocumentStore:
    store = DocumentStore(path / "documents.tmp")
    for row, text in enumerate(texts):
        store.add(Document(text, "corpus.jsonl", row + 1))
    store.seal()
    return store


def _assign(store: DocumentStore, seed: int = 0, share: float = 0.05) -> tuple[np.ndarray, str]:
    return splits.assign_splits(store.digests(), validation_share=share, test_share=share, seed=seed)


def test_split_follows_the_text_and_the_seed_only(tmp_path: Path) -> None:
    texts = [_prose(f"{i}", 20) for i in range(3000)]
    with _store(tmp_path, texts) as store:
        split_D, rule = _assign(store)
        again, _ = _assign(store, seed=1)
    with _store(tmp_path, texts[::-1] + [_prose(f"new {i}", 20) for i in range(500)]) as store:
        reordered, _ = _assign(store)
    assert rule == "hash"
    np.testing.assert_array_equal(reordered[:3000], split_D[::-1])
    for split in (splits.VALIDATION, splits.TEST):
        assert 100 < int((split_D == split).sum()) < 200
        assert 100 < int((again == split).sum()) < 200
    assert int(((split_D == splits.TEST) & (again == splits.TEST)).sum()) < 40


@pytest.mark.parametrize("count", [3, 4, 7, 20])
def test_few_documents_still_fill_every_split(count: int, tmp_path: Path) -> None:
    for seed in range(20):
        with _store(tmp_path, [f"document {i}" for i in range(count)]) as store:
            split_D, _ = _assign(store, seed)
        assert set(split_D.tolist()) == {0, 1, 2}


def test_too_few_documents_or_bad_shares_are_refused(tmp_path: Path) -> None:
    with _store(tmp_path, ["one", "two", "one  "]) as store:
        with pytest.raises(DataError, match="2 distinct document"):
            _assign(store)
        with pytest.raises(ConfigError, match="together below 1"):
            _assign(store, share=0.5)


def test_exact_duplicates_are_removed_whatever_their_white_space(tmp_path: Path) -> None:
    with _store(tmp_path, ["a b c", "a  b\nc\n", "caf\u00e9", "cafe\u0301", "A b c"]) as store:
        assert len(store) == 3
        assert store.num_duplicates == 2
        assert store.read(2) == b"A b c"
        assert store.place(1) == ("corpus.jsonl", 3)
    assert text_digest("ab") != text_digest("a b")


def test_store_gives_back_every_document_in_parts(tmp_path: Path) -> None:
    texts = [_prose(f"{i}", 10 + 40 * (i % 7)) for i in range(60)]
    with _store(tmp_path, texts) as store:
        for size in (64, 700, 1 << 20):
            joined: dict[int, bytes] = {}
            for numbers, parts in store.batches(range(60), size):
                assert sum(map(len, parts)) <= size
                for number, part in zip(numbers, parts, strict=True):
                    joined[number] = joined.get(number, b"") + part
            assert [joined[i].decode() for i in range(60)] == texts


def _reference_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9\u0080-\uffff]+", re.sub("[A-Z]", lambda m: m[0].lower(), text))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.text(alphabet=st.sampled_from("aAbB1 .\n_é\u0142"), max_size=60), max_size=6), st.integers(1, 4))
def test_ngram_hashes_agree_with_plain_ngrams(texts: list[str], length: int) -> None:
    hashes, owner = ngram_hashes([text.encode() for text in texts], length)
    plain = [
        (number, tuple(words[i : i + length]))
        for number, words in enumerate(_reference_words(text) for text in texts)
        for i in range(len(words) - length + 1)
    ]
    assert owner.tolist() == [number for number, _ in plain]
    by_hash = {int(h): gram for h, (_, gram) in zip(hashes, plain, strict=True)}
    assert len(by_hash) == len({gram for _, gram in plain})
    assert all(by_hash[int(h)] == gram for h, (_, gram) in zip(hashes, plain, strict=True))


def test_quotes_dashes_and_scripts_without_spaces_part_words() -> None:
    words = word_hashes(["don\u2019t\u2014stop".encode(), "日本語abc".encode(), b"x" * 200_000])[1]
    assert np.bincount(words).tolist() == [3, 4, 1]
    far = (" " * 150_000 + "hello").encode()
    assert word_hashes([far])[0][0] == word_hashes([b"HELLO"])[0][0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 50), max_size=30), st.lists(st.integers(0, 50), max_size=30))
def test_hash_set_answers_as_a_set(inside: list[int], asked: list[int]) -> None:
    spread = np.uint64(0x9E3779B97F4A7C15)
    known = HashSet(np.array(inside, dtype=np.uint64) * spread)
    given_hashes = np.array(asked, dtype=np.uint64) * spread
    found = known.values[known.positions(given_hashes)]
    assert sorted(found.tolist()) == sorted(
        int(h) for h, a in zip(given_hashes, asked, strict=True) if a in set(inside)
    )


def _planted(tmp_path: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> tuple[DocumentStore, np.ndarray]:
    monkeypatch.setattr(splits, "_MAX_HELD_OUT_BYTES", chunk_bytes)
    texts = [_prose(f"{i}", 200) for i in range(40)]
    words = texts[31].split()
    texts[3] = " ".join([*texts[3].split(), *words[:60]])  # 48 of the 188 13-grams of document 31
    texts[33] = texts[32].upper() + " one more word"  # test copies validation, not training
    texts[5] += " " + " ".join(texts[35].split()[:12])  # 12 words are no 13-gram
    split_D = np.zeros(40, dtype=np.uint8)
    split_D[30:33], split_D[33:36] = splits.VALIDATION, splits.TEST
    return _store(tmp_path, texts), split_D


@pytest.mark.parametrize("chunk_bytes", [48 << 20, 1])
def test_planted_leaks_are_found_and_measured(
    chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, split_D = _planted(tmp_path, chunk_bytes, monkeypatch)
    with store:
        leaks = splits.find_leaks(store, split_D, 0.1)
        assert dict(zip(leaks.documents.tolist(), leaks.overlaps.round(4).tolist(), strict=True)) == {
            30: 0.0,
            31: round(48 / 188, 4),
            32: 0.0,
            33: round(188 / 191, 4),
            34: 0.0,
            35: 0.0,
        }
        assert leaks.leaked.tolist() == [31, 33]
        kept = splits.apply_policy(store, split_D, leaks, "drop")
        assert np.flatnonzero(kept == splits.DROPPED).tolist() == [31, 33]
        np.testing.assert_array_equal(splits.apply_policy(store, split_D, leaks, "report"), split_D)
        with pytest.raises(DataError, match=r"2 held-out document.*corpus\.jsonl, 32"):
            splits.apply_policy(store, split_D, leaks, "refuse")
        summary = splits.leak_summary(store, split_D, leaks)
        assert summary["leaked"] == {"validation": 1, "test": 1}
        assert summary["examples"][0] == {"split": "test", "source": "corpus.jsonl", "row": 34, "overlap": 0.9843}


def test_a_copy_of_a_dropped_validation_document_may_stay_in_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, split_D = _planted(tmp_path, 48 << 20, monkeypatch)
    with store:
        leaks = splits.find_leaks(store, split_D, 0.0)
        assert leaks.leaked.tolist() == [31, 33]


def test_what_leaks_into_validation_and_stays_there_counts_against_test(tmp_path: Path) -> None:
    first, own = _prose("first", 100), _prose("own", 100)
    with _store(tmp_path, [first, f"{first} {own}", own]) as store:
        split_D = np.array([splits.TRAIN, splits.VALIDATION, splits.TEST], dtype=np.uint8)
        assert splits.find_leaks(store, split_D, 0.1).leaked.tolist() == [1]
        assert splits.find_leaks(store, split_D, 0.1, drops=False).leaked.tolist() == [1, 2]


def test_a_long_document_in_parts_gets_the_ids_of_the_whole(tmp_path: Path) -> None:
    text = "def f(x):\n        return x  +  1\n\n\t  # a   comment\n" * 40
    tokenizer = train_tokenizer([text], 300)
    with _store(tmp_path, [text]) as store:
        parts = [part.decode() for _, group in store.batches([0], 200) for part in group]
    assert len(parts) > 5
    assert np.concatenate(tokenizer.encode_batch(parts)).tolist() == tokenizer.encode(text)


def test_dropping_all_of_a_split_is_an_error(tmp_path: Path) -> None:
    texts = [_prose("same", 100) + f" {name}" for name in ("one", "two", "three")]
    with _store(tmp_path, texts) as store:
        split_D = np.array([0, 1, 2], dtype=np.uint8)
        leaks = splits.find_leaks(store, split_D, 0.1)
        with pytest.raises(DataError, match="every validation document is a near-copy"):
            splits.apply_policy(store, split_D, leaks, "drop")
