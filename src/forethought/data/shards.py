"""Token shards: one memory-mapped file of ids a split, the starts of its documents, and a JSON sidecar.

    train.bin      ids, little-endian uint16 (vocabulary up to 65,536) or uint32; every document ends in the separator
    train.starts   little-endian uint64: the position of each document's first id
    train.json     the sidecar: counts, type, separator, hashes; it names no file, so it cannot lead elsewhere

Shape suffixes: N positions of the split, D documents.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forethought.core import files
from forethought.core.config import config, from_dict, to_dict
from forethought.core.errors import ArtefactError, ConfigError, DataError

SHARD_FORMAT = 1
_MAX_SIDECAR_BYTES = 1 << 20
_MAX_UINT16_VOCABULARY = 1 << 16


@config
class ShardFacts:
    """The sidecar of a shard, checked field by field when it is read."""

    format: int
    dtype: Literal["uint16", "uint32"]
    num_tokens: int
    num_documents: int
    num_bytes: int
    vocab_size: int
    end_of_text: int
    source_hash: str
    tokenizer_hash: str
    tokens_sha256: str = field(default="")


class ShardWriter:
    """Writes one split into a directory that is being staged; a context manager that leaves the sidecar behind."""

    def __init__(self, directory: Path, name: str, *, vocab_size: int, end_of_text: int) -> None:
        self._directory, self._name = directory, name
        self._vocab_size, self._end_of_text = vocab_size, end_of_text
        self._dtype = np.dtype("<u2" if vocab_size <= _MAX_UINT16_VOCABULARY else "<u4")
        self._starts = array("Q")
        self._hash = hashlib.sha256()
        self._out = files.open_write(directory / f"{name}.bin")
        self.num_tokens = 0
        self.num_bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()

    def begin(self) -> None:
        """Start a document, ending the one before with the separator."""
        self._end()
        self._starts.append(self.num_tokens)

    def extend(self, tokens: NDArray[Any], num_bytes: int) -> None:
        """Add ids to the document that was started, which stand for so many bytes of text."""
        data = tokens.astype(self._dtype).tobytes()
        self._out.write(data)
        self._hash.update(data)
        self.num_tokens += len(tokens)
        self.num_bytes += num_bytes

    def finish(self, *, source_hash: str, tokenizer_hash: str) -> ShardFacts:
        """End the last document and write the starts and the sidecar."""
        self._end()
        self._out.flush()
        files.write_bytes(self._directory / f"{self._name}.starts", np.array(self._starts, dtype="<u8").tobytes())
        facts = ShardFacts(
            format=SHARD_FORMAT,
            dtype="uint16" if self._dtype.itemsize == 2 else "uint32",
            num_tokens=self.num_tokens,
            num_documents=len(self._starts),
            num_bytes=self.num_bytes,
            vocab_size=self._vocab_size,
            end_of_text=self._end_of_text,
            source_hash=source_hash,
            tokenizer_hash=tokenizer_hash,
            tokens_sha256=self._hash.hexdigest(),
        )
        files.write_json(self._directory / f"{self._name}.json", to_dict(facts))
        return facts

    def _end(self) -> None:
        if self._starts:
            self.extend(np.array([self._end_of_text]), 0)


class TokenDataset:
    """One split, opened and checked: `tokens` (N, memory-mapped), `document_starts` (D) and the facts of its sidecar.

    `num_bytes` counts the UTF-8 bytes of the text, for bits a byte; separators count as tokens but hold no bytes.
    """

    def __init__(self, path: Path, facts: ShardFacts, tokens: NDArray[Any], document_starts: NDArray[np.int64]) -> None:
        self.path = path
        self.facts = facts
        self.tokens = tokens
        self.document_starts = document_starts

    def __len__(self) -> int:
        return self.num_tokens

    @property
    def num_tokens(self) -> int:
        """Ids in the split, separators included."""
        return self.facts.num_tokens

    @property
    def num_documents(self) -> int:
        """Documents in the split."""
        return self.facts.num_documents

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of text in the split."""
        return self.facts.num_bytes

    @property
    def end_of_text(self) -> int:
        """The id that ends every document."""
        return self.facts.end_of_text

    @property
    def vocab_size(self) -> int:
        """Ids are below this number."""
        return self.facts.vocab_size

    def document(self, index: int) -> NDArray[np.int64]:
        """Return the ids of one document, its separator included.

        Raises:
            DataError: an id is not below the vocabulary's size.
        """
        bounds = self.document_bounds
        return self.gather(np.arange(bounds[index], bounds[index + 1]))

    @property
    def document_bounds(self) -> NDArray[np.int64]:
        """The starts of the documents and, last, the end of the split (D + 1)."""
        return np.append(self.document_starts, self.num_tokens)

    def gather(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids at positions, checked against the vocabulary.

        Raises:
            DataError: an id is not below the vocabulary's size, so the file is damaged.
        """
        tokens = self.tokens[positions].astype(np.int64)
        if tokens.size and int(tokens.max()) >= self.vocab_size:
            raise DataError(
                f"{self.path} holds the id {int(tokens.max())} where ids are below {self.vocab_size}; "
                "the file is damaged, prepare the corpus again"
            )
        return tokens


def open_shard(directory: str | Path, name: str) -> TokenDataset:
    """Open one split of a corpus and check sizes, type and document starts.

    Raises:
        DataError: a file is missing, of another size than the sidecar says, or inconsistent; the message names it.
    """
    stem = Path(directory) / name
    facts = _read_facts(stem.with_suffix(".json"))
    tokens_path, starts_path = stem.with_suffix(".bin"), stem.with_suffix(".starts")
    itemsize = np.dtype(facts.dtype).itemsize
    _check_size(tokens_path, facts.num_tokens * itemsize)
    _check_size(starts_path, facts.num_documents * 8)
    starts = _read_starts(starts_path, facts)
    dtype = np.dtype(facts.dtype).newbyteorder("<")
    if facts.num_tokens == 0:
        return TokenDataset(tokens_path, facts, np.empty(0, dtype), starts)
    return TokenDataset(tokens_path, facts, np.memmap(tokens_path, dtype=dtype, mode="r"), starts)


def _read_facts(path: Path) -> ShardFacts:
    try:
        _refuse_link(path)
        facts = from_dict(ShardFacts, files.read_json(path, what="sidecar", limit=_MAX_SIDECAR_BYTES), source=str(path))
    except (ArtefactError, ConfigError) as error:
        raise DataError(f"{error}; prepare the corpus again") from error
    if facts.format != SHARD_FORMAT:
        raise DataError(f"{path} has format {facts.format}; this version reads format {SHARD_FORMAT}; prepare it again")
    counts = (facts.num_tokens, facts.num_documents, facts.num_bytes)
    if min(counts) < 0 or facts.num_documents > facts.num_tokens or (facts.num_tokens and not facts.num_documents):
        raise DataError(f"{path} has counts that cannot be (tokens, documents, bytes: {counts}); prepare it again")
    limit = 1 << (8 * np.dtype(facts.dtype).itemsize)
    if not 0 <= facts.end_of_text < facts.vocab_size <= limit:
        raise DataError(
            f"{path} has vocab_size {facts.vocab_size} and end_of_text {facts.end_of_text}, which do not fit "
            f"{facts.dtype}; prepare the corpus again"
        )
    return facts


def _read_starts(path: Path, facts: ShardFacts) -> NDArray[np.int64]:
    raw = np.fromfile(path, dtype="<u8")
    if len(raw) and (raw[0] != 0 or raw[-1] >= facts.num_tokens or np.any(raw[1:] <= raw[:-1])):
        raise DataError(f"{path}: document starts do not rise from 0 inside the split; prepare the corpus again")
    return raw.astype(np.int64)


def _check_size(path: Path, expected: int) -> None:
    _refuse_link(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; prepare the corpus again")
    size = path.stat().st_size
    if size != expected:
        raise DataError(f"{path} has {size} bytes where its sidecar says {expected}; it is damaged, prepare it again")


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise DataError(f"{path} is a link; the files of a corpus are regular files, prepare it again")
