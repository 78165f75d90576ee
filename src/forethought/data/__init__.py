"""Text in, batches of tokens out: reading, splits, leak check, tokenizer, shards and packing; imports no torch."""

from __future__ import annotations

from forethought.data.corpus import Corpus, CorpusConfig, open_corpus, prepare_corpus
from forethought.data.episodes import (
    Episodes,
    EpisodeWriter,
    Normaliser,
    ReturnsToGo,
    WindowBatch,
    WindowBatches,
    WindowConfig,
    WindowCutter,
    concatenate,
    episodes_from_flat,
    fit_normaliser,
    identity_normaliser,
    open_episodes,
    read_episodes,
    read_hdf5,
    read_lerobot,
    read_minari,
    read_npz,
    returns_to_go,
    save_episodes,
    split_by_episode,
    write_minari,
)
from forethought.data.formats import Document
from forethought.data.packing import IGNORED_TARGET, Batch, PackedBatches, evaluation_batches
from forethought.data.reading import ReadOptions, Tally, read_documents
from forethought.data.shards import TokenDataset, open_shard
from forethought.data.stdlib import STDLIB, StdlibFacts, stdlib_facts
from forethought.data.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer, train_tokenizer

__all__ = [
    "END_OF_TEXT",
    "IGNORED_TARGET",
    "STDLIB",
    "Batch",
    "Corpus",
    "CorpusConfig",
    "Document",
    "EpisodeWriter",
    "Episodes",
    "Normaliser",
    "PackedBatches",
    "ReadOptions",
    "ReturnsToGo",
    "StdlibFacts",
    "Tally",
    "TokenDataset",
    "Tokenizer",
    "WindowBatch",
    "WindowBatches",
    "WindowConfig",
    "WindowCutter",
    "concatenate",
    "episodes_from_flat",
    "evaluation_batches",
    "fit_normaliser",
    "identity_normaliser",
    "load_tokenizer",
    "open_corpus",
    "open_episodes",
    "open_shard",
    "prepare_corpus",
    "read_documents",
    "read_episodes",
    "read_hdf5",
    "read_lerobot",
    "read_minari",
    "read_npz",
    "returns_to_go",
    "save_episodes",
    "split_by_episode",
    "stdlib_facts",
    "train_tokenizer",
    "write_minari",
]
