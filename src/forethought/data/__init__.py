"""Text in, batches of tokens out: reading, splits, leak check, tokenizer, shards and packing; imports no torch."""

from __future__ import annotations

from forethought.data.corpus import Corpus, CorpusConfig, open_corpus, prepare_corpus
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
    "PackedBatches",
    "ReadOptions",
    "StdlibFacts",
    "Tally",
    "TokenDataset",
    "Tokenizer",
    "evaluation_batches",
    "load_tokenizer",
    "open_corpus",
    "open_shard",
    "prepare_corpus",
    "read_documents",
    "stdlib_facts",
    "train_tokenizer",
]
