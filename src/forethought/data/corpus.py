"""From sources to a corpus that can be trained on: read, split, check for leaks, train the tokenizer, write shards.

A corpus is a directory, published by one rename and identified by a hash of its sources and its config, so that
preparing the same thing again opens the first result. All text passes through a temporary file inside the staging
directory; memory holds a few megabytes of it at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import forethought.data.splits as splits
from forethought.core import artefact, files, rng
from forethought.core.config import config, digest, from_dict, to_dict
from forethought.core.errors import ArtefactError, ConfigError, DataError, RunExistsError, unknown_name
from forethought.data.reading import ReadOptions, SourceFile, Tally, find_files, fingerprint, read_files
from forethought.data.shards import ShardFacts, ShardWriter, TokenDataset, open_shard
from forethought.data.splits import SPLITS, TRAIN, LeakPolicy
from forethought.data.stdlib import STDLIB, stdlib_files
from forethought.data.store import DocumentStore
from forethought.data.tokenizer import (
    MAX_VOCAB_SIZE,
    MIN_VOCAB_SIZE,
    Tokenizer,
    load_tokenizer,
    stored_identity,
    train_tokenizer,
)

CORPUS_KIND = "corpus"
CORPUS_FORMAT = 1
CORPUS_FILE = "corpus.json"
Exists = Literal["reuse", "refuse", "replace"]
EXISTS: tuple[Exists, ...] = ("reuse", "refuse", "replace")
Progress = Callable[[str, int, int | None], None]

_BATCH_BYTES = 2 << 20
_SPOOL = "documents.tmp"
_PROGRESS_EVERY = 256


@config
class CorpusConfig:
    """Everything that decides what a corpus holds; `reading` says how files become documents."""

    reading: ReadOptions = ReadOptions()
    max_bytes: int = 0
    """Stop after so many bytes of text; 0 reads everything."""
    validation_share: float = 0.05
    test_share: float = 0.05
    seed: int = 0
    leak_policy: LeakPolicy = "drop"
    leak_threshold: float = 0.1
    """Share of a held-out document's 13-grams that may stand in an earlier split."""
    vocab_size: int = 4096
    tokenizer: str = ""
    """A tokenizer.json to use as it is; empty: train one on the training split."""
    tokenizer_bytes: int = 32 << 20
    """At most so much text of the training split is used to train the tokenizer, whole documents drawn by the seed."""

    def __post_init__(self) -> None:
        if not 0 <= self.leak_threshold <= 1:
            raise ConfigError(f"leak_threshold {self.leak_threshold} must lie between 0 and 1")
        if not MIN_VOCAB_SIZE <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise ConfigError(f"vocab_size {self.vocab_size} is not between {MIN_VOCAB_SIZE} and {MAX_VOCAB_SIZE}")
        if self.max_bytes < 0 or self.tokenizer_bytes < 1 or self.seed < 0:
            raise ConfigError("max_bytes and seed must be at least 0, and tokenizer_bytes at least 1")
        if min(self.validation_share, self.test_share) < 0 or self.validation_share + self.test_share >= 1:
            raise ConfigError(
                f"validation_share={self.validation_share} and test_share={self.test_share} must be at least 0 "
                "and together below 1"
            )


@dataclass(frozen=True)
class Corpus:
    """An opened corpus: its three splits, its tokenizer and the report of how it was made."""

    path: Path
    train: TokenDataset
    validation: TokenDataset
    test: TokenDataset
    tokenizer: Tokenizer
    config: CorpusConfig
    identity: str
    report: dict[str, Any]


def prepare_corpus(
    sources: Sequence[str | Path],
    out: str | Path,
    config: CorpusConfig | None = None,
    progress: Progress | None = None,
    *,
    exists: Exists = "reuse",
) -> Corpus:
    """Make a corpus of files, folders or "stdlib" and open it; progress is called as (stage, done, total or None).

    Where `out` exists, "reuse" opens it if it was made of the same sources with the same config, "replace" makes it
    anew and "refuse" stops. An interrupted or killed preparation leaves `out` as it was.

    Raises:
        DataError: a source cannot be read, or holds too little text for the splits.
        RunExistsError: `out` exists and may not be used.
        StorageError: the disk refused a write; `out` is as it was before.
        ConfigError, ArtefactError: `exists`, the config or the tokenizer named in it cannot be used.
    """
    config, out = config or CorpusConfig(), Path(out)
    if exists not in EXISTS:
        raise unknown_name("choice for an existing corpus", str(exists), EXISTS)
    if not sources:
        raise ConfigError("no source was given; name files or folders, or 'stdlib' for the embedded corpus")
    tally = Tally()
    found = _find(sources, tally)
    source_hash = fingerprint(found)
    identity = _identity(source_hash, config)
    if out.exists() and exists != "replace":
        return _reuse(out, identity, exists)
    files.sweep(out.parent)
    work = _Preparation(config, progress or _silent, source_hash)
    with files.staged(out, replace=exists == "replace") as staging:
        report = work.run(staging, found, tally)
        report["sources"] = {"given": [str(source) for source in sources], "sha256": source_hash}
        facts = {"format": CORPUS_FORMAT, "identity": identity, "config": to_dict(config), "report": report}
        files.write_bytes(staging / CORPUS_FILE, files.dump_json(facts))
        artefact.write_kind(staging, CORPUS_KIND)
    return open_corpus(out)


def open_corpus(path: str | Path) -> Corpus:
    """Open a prepared corpus; every file's size and consistency is checked, and that the parts belong together.

    Raises:
        ArtefactError: the directory is not a corpus or its description or tokenizer is malformed.
        DataError: a shard is missing, damaged or was made with another tokenizer; the message names the file.
    """
    path = Path(path)
    kind = artefact.read_kind(path)
    if kind != CORPUS_KIND:
        raise ArtefactError(f"{path} is a {kind}; a corpus is expected, as prepare_corpus makes it")
    facts = files.read_json(path / CORPUS_FILE, what="corpus description", inside=True)
    if facts.get("format") != CORPUS_FORMAT:
        raise ArtefactError(
            f"{path / CORPUS_FILE} has format {facts.get('format')!r} where {CORPUS_FORMAT} is read; prepare it again"
        )
    settings, report = facts.get("config"), facts.get("report")
    if not isinstance(settings, dict) or not isinstance(report, dict):
        raise ArtefactError(f"{path / CORPUS_FILE} lacks its config or its report; prepare the corpus again")
    tokenizer = load_tokenizer(path)
    opened = [open_shard(path, name) for name in SPLITS]
    for dataset in opened:
        facts_of_it = (dataset.facts.tokenizer_hash, dataset.vocab_size, dataset.end_of_text)
        if facts_of_it != (tokenizer.digest, tokenizer.vocab_size, tokenizer.end_of_text):
            raise DataError(f"{dataset.path} was made with another tokenizer than the one beside it; prepare it again")
    train, validation, test = opened
    made_by = from_dict(CorpusConfig, settings, source=str(path / CORPUS_FILE))
    return Corpus(path, train, validation, test, tokenizer, made_by, str(facts.get("identity")), report)


def _find(sources: Sequence[str | Path], tally: Tally) -> list[SourceFile]:
    found: list[SourceFile] = []
    for source in sources:
        found.extend(stdlib_files() if source == STDLIB else find_files([source], tally))
    return found


def _identity(source_hash: str, config: CorpusConfig) -> str:
    given = stored_identity(config.tokenizer) if config.tokenizer else ""
    settings = to_dict(dataclasses.replace(config, tokenizer=""))
    return digest({"format": CORPUS_FORMAT, "sources": source_hash, "config": settings, "tokenizer": given})


def _reuse(out: Path, identity: str, exists: str) -> Corpus:
    if exists == "refuse":
        raise RunExistsError(f"{out} already exists; choose another name, or allow it to be reused or replaced")
    corpus = open_corpus(out)
    if corpus.identity != identity:
        raise RunExistsError(
            f"{out} holds a corpus made of other sources or with another config ({corpus.identity[:16]}) than those "
            f"given now ({identity[:16]}); restore them, choose another name, or replace it"
        )
    files.verify(out)
    return corpus


def _silent(stage: str, done: int, total: int | None) -> None:
    del stage, done, total


@dataclass(frozen=True)
class _Preparation:
    """The stages of one preparation, in the order in which they run."""

    config: CorpusConfig
    progress: Progress
    source_hash: str

    def run(self, staging: Path, found: list[SourceFile], tally: Tally) -> dict[str, Any]:
        with DocumentStore(staging / _SPOOL) as store:
            self._read(store, found, tally)
            split_D, rule = splits.assign_splits(
                store.digests(),
                validation_share=self.config.validation_share,
                test_share=self.config.test_share,
                seed=self.config.seed,
            )
            kept_D, leaks = self._check_leaks(store, split_D)
            tokenizer = self._tokenizer(store, kept_D)
            tokenizer.save(staging)
            written = {
                name: self._encode(store, np.flatnonzero(kept_D == split), tokenizer, staging, name)
                for split, name in enumerate(SPLITS)
            }
            report = _report(store, tally, written, tokenizer)
        (staging / _SPOOL).unlink()
        return report | {"split_rule": rule, "leaks": leaks}

    def _read(self, store: DocumentStore, found: list[SourceFile], tally: Tally) -> None:
        for number, document in enumerate(read_files(found, self.config.reading, tally)):
            store.add(document)
            if number % _PROGRESS_EVERY == 0:
                self.progress("read", store.num_bytes, self.config.max_bytes or None)
            if self.config.max_bytes and store.num_bytes >= self.config.max_bytes:
                break
        store.seal()
        self.progress("read", store.num_bytes, store.num_bytes)
        if not len(store):
            raise DataError(f"no document was found in {tally.files} file(s); skipped: {tally.skipped or 'nothing'}")

    def _check_leaks(
        self, store: DocumentStore, split_D: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        def report_progress(done: int, total: int) -> None:
            self.progress("leak check", done, total)

        policy = self.config.leak_policy
        leaks = splits.find_leaks(store, split_D, self.config.leak_threshold, report_progress, drops=policy == "drop")
        kept_D = splits.apply_policy(store, split_D, leaks, policy)
        summary = splits.leak_summary(store, split_D, leaks)
        return kept_D, summary | {"policy": policy, "threshold": self.config.leak_threshold}

    def _tokenizer(self, store: DocumentStore, split_D: NDArray[np.uint8]) -> Tokenizer:
        self.progress("tokenizer", 0, None)
        if self.config.tokenizer:
            return load_tokenizer(self.config.tokenizer)
        chosen = _sample(np.flatnonzero(split_D == TRAIN), store.lengths(), self.config)
        return train_tokenizer(_texts(store, chosen), self.config.vocab_size)

    def _encode(
        self, store: DocumentStore, members: NDArray[np.int64], tokenizer: Tokenizer, staging: Path, name: str
    ) -> ShardFacts:
        total, current = int(store.lengths()[members].sum()), -1
        encode = tokenizer.bulk_encoder()
        writer = ShardWriter(staging, name, vocab_size=tokenizer.vocab_size, end_of_text=tokenizer.end_of_text)
        with writer:
            for numbers, parts in store.batches(members, _BATCH_BYTES):
                for number, part in zip(numbers, parts, strict=True):
                    if number != current:
                        writer.begin()
                        current = number
                    writer.extend(encode(part.decode("utf-8")), len(part))
                self.progress(f"encode {name}", writer.num_bytes, total)
            return writer.finish(source_hash=self.source_hash, tokenizer_hash=tokenizer.digest)


def _sample(members: NDArray[np.int64], lengths: NDArray[np.int64], config: CorpusConfig) -> NDArray[np.int64]:
    if int(lengths[members].sum()) <= config.tokenizer_bytes:
        return members
    order = rng.generator(config.seed, "data.tokenizer").permutation(members)
    count = int(np.searchsorted(np.cumsum(lengths[order]), config.tokenizer_bytes, side="right"))
    return np.sort(order[: max(1, count)])


def _texts(store: DocumentStore, members: NDArray[np.int64]) -> Iterator[str]:
    for _, parts in store.batches(members, _BATCH_BYTES):
        for part in parts:
            yield part.decode("utf-8")


def _report(store: DocumentStore, tally: Tally, written: dict[str, ShardFacts], tokenizer: Tokenizer) -> dict[str, Any]:
    tokens = sum(facts.num_tokens for facts in written.values())
    size = sum(facts.num_bytes for facts in written.values())
    return {
        "files": store.num_sources,
        "documents": len(store),
        "bytes": store.num_bytes,
        "tokens": tokens,
        "bytes_per_token": round(size / tokens, 4),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.digest,
        "duplicates_removed": store.num_duplicates,
        "skipped": dict(tally.skipped),
        "skipped_examples": list(tally.examples),
        "splits": {
            name: {"documents": facts.num_documents, "tokens": facts.num_tokens, "bytes": facts.num_bytes}
            for name, facts in written.items()
        },
    }
