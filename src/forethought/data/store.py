"""A temporary file of documents in order, with their digests in memory: what the passes over a corpus read from.

Only offsets, digests and places stay in memory (under 50 bytes a document); the text is on disk, so that the size of a
corpus is bounded by the disk and not by the memory.
"""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from forethought.core import files
from forethought.core.errors import DataError
from forethought.data.cutting import byte_parts
from forethought.data.formats import Document

DIGEST_BYTES = 16


def text_digest(text: str) -> bytes:
    """Return 16 bytes that two texts share exactly when they differ only in white space and Unicode composition."""
    normal = " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())
    return hashlib.blake2b(normal.encode("utf-8"), digest_size=DIGEST_BYTES, person=b"forethought-text").digest()


class DocumentStore:
    """Documents written once, in order and without exact duplicates, then read in batches any number of times.

    Use it as a context manager; `seal` ends the writing. Lengths and digests are then arrays with one entry a document.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_duplicates = 0
        self._offsets = array("Q", [0])
        self._digests = bytearray()
        self._seen: set[bytes] = set()
        self._sources: dict[str, int] = {}
        self._places = array("Q")
        self._out = files.open_write(path)
        self._reader = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> DocumentStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._out.close()
        finally:
            self._reader.close()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the documents kept."""
        return self._offsets[-1]

    @property
    def num_sources(self) -> int:
        """Files that gave at least one document."""
        return len(self._sources)

    def add(self, document: Document) -> bool:
        """Keep a document unless its text is here already; say whether it was kept."""
        digest = text_digest(document.text)
        if digest in self._seen:
            self.num_duplicates += 1
            return False
        self._seen.add(digest)
        data = document.text.encode("utf-8")
        self._out.write(data)
        self._offsets.append(self._offsets[-1] + len(data))
        self._digests += digest
        self._places.extend((self._sources.setdefault(document.source, len(self._sources)), document.row))
        return True

    def seal(self) -> None:
        """End the writing and free what only finding duplicates needed."""
        self._out.flush()
        self._seen = set()

    def lengths(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each document."""
        return np.diff(np.array(self._offsets, dtype=np.int64))

    def digests(self) -> NDArray[np.uint64]:
        """Digests of the documents as pairs of 64-bit numbers, of shape documents x 2."""
        return np.frombuffer(bytes(self._digests), dtype="<u8").reshape(-1, 2)

    def place(self, index: int) -> tuple[str, int]:
        """The file and the line, row or number that a document came from."""
        return list(self._sources)[self._places[2 * index]], self._places[2 * index + 1]

    def read(self, index: int) -> bytes:
        """Return the UTF-8 bytes of one document."""
        start, end = self._offsets[index], self._offsets[index + 1]
        self._reader.seek(start)
        data = bytearray()
        while len(data) < end - start:
            block = self._reader.read(end - start - len(data))
            if not block:
                raise DataError(f"{self.path} is shorter than what was written to it; is another process using it?")
            data += block
        return bytes(data)

    def batches(self, indices: Iterable[int], max_bytes: int) -> Iterator[tuple[list[int], list[bytes]]]:
        """Yield documents by number in groups of about a size; a longer document comes in parts cut at white space."""
        numbers: list[int] = []
        parts: list[bytes] = []
        room = max_bytes
        for index in indices:
            for part in byte_parts(self.read(int(index)), max_bytes):
                if parts and len(part) > room:
                    yield numbers, parts
                    numbers, parts, room = [], [], max_bytes
                numbers.append(int(index))
                parts.append(part)
                room -= len(part)
        if parts:
            yield numbers, parts
