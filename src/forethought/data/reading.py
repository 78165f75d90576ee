"""Documents from files and folders: which files are read, in which order, and what happens to a bad one.

A source is a file or a folder. A folder is walked in sorted order; hidden files, binaries, special files and links that
leave the folder are skipped and counted. Every format reader yields documents and, where something cannot be read, the
error itself as a value, so that one place decides between refusing and skipping.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import forethought.data.formats as formats
from forethought.core import files
from forethought.core.config import config, digest
from forethought.core.errors import ConfigError, DataError
from forethought.data.cutting import cut
from forethought.data.formats import Document

MAX_EXAMPLES = 20
_WHOLE_FILE_BYTES = 1 << 20


@config
class ReadOptions:
    """How documents are read: lengths are in characters, bounds on memory in bytes."""

    text_field: str = "text"
    on_error: Literal["refuse", "skip"] = "refuse"
    document_separator: str = ""
    """A text file is split here, for example at <|endoftext|> or at a blank line; empty: it is cut by length."""
    piece_length: int = 8192
    """Length of the pieces into which a text file is cut, at paragraph ends; 0 keeps it whole."""
    recut_length: int = 0
    """Documents of any format that are longer are cut like a text file; 0 keeps them whole."""
    max_document_bytes: int = 64 << 20
    """A longer document, line or row is an error, so that no file can exhaust the memory."""

    def __post_init__(self) -> None:
        if min(self.piece_length, self.recut_length) < 0 or self.max_document_bytes < 1024:
            raise ConfigError("piece_length and recut_length must be at least 0 and max_document_bytes at least 1024")
        if not self.text_field:
            raise ConfigError("text_field is empty; give the name of the field that holds the text, such as 'text'")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read: where it is, the name that identifies it in reports and hashes, and whether a user named it."""

    path: Path
    label: str
    named: bool


@dataclass
class Tally:
    """What was read and what was skipped, by reason, with the first few messages."""

    files: int = 0
    documents: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def skip(self, reason: str, message: str) -> None:
        """Count one skipped thing under a reason and keep its message while there is room."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(message)


def read_documents(
    paths: Iterable[str | Path], options: ReadOptions | None = None, *, tally: Tally | None = None
) -> Iterator[Document]:
    """Yield the documents of files and folders in a fixed order, reading each file as a stream.

    Raises:
        DataError: something cannot be read and options.on_error is "refuse"; the message names the file and the line
            (or row). With "skip" it is counted in the tally instead.
    """
    tally = tally if tally is not None else Tally()
    yield from read_files(find_files(paths, tally), options or ReadOptions(), tally)


def find_files(paths: Iterable[str | Path], tally: Tally | None = None) -> list[SourceFile]:
    """List the files that the sources stand for, folders walked in sorted order, and count what is left out.

    Raises:
        DataError: a source does not exist, is no regular file or folder, or a folder holds no file to read.
    """
    tally = tally if tally is not None else Tally()
    found: list[SourceFile] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = _walk(path, tally)
            if not inside:
                raise DataError(f"{path} holds no file to read (hidden files are skipped); give a folder with text")
            found.extend(inside)
        elif path.is_file():
            found.append(SourceFile(path, path.name, True))
        else:
            state = "is neither a regular file nor a folder" if path.exists() else "does not exist"
            raise DataError(f"{path} {state}; give text, JSONL or Parquet files, folders of them, or 'stdlib'")
    return found


def read_files(sources: Iterable[SourceFile], options: ReadOptions, tally: Tally) -> Iterator[Document]:
    """Yield the documents of listed files; errors are raised or counted as options.on_error says.

    Raises:
        DataError: as read_documents.
    """
    for source in sources:
        tally.files += 1
        for item in _read_one(source, options):
            if isinstance(item, Document):
                for document in _usable(item, options, tally):
                    tally.documents += 1
                    yield document
            elif isinstance(item, formats.Ignored):
                tally.skip(item.reason, f"{source.label}: {item.reason}")
            elif options.on_error == "refuse":
                raise item
            else:
                tally.skip("unreadable", str(item))


def fingerprint(sources: Iterable[SourceFile]) -> str:
    """Return one SHA-256 over the names and contents of files, independent of where they lie.

    Raises:
        StorageError: a file cannot be read.
    """
    total = hashlib.sha256()
    for source in sources:
        name = source.label.encode("utf-8", "surrogateescape")
        total.update(digest({"name": name.hex(), "content": files.sha256_file(source.path)}).encode())
    return total.hexdigest()


def _walk(root: Path, tally: Tally) -> list[SourceFile]:
    home = root.resolve()
    found: list[SourceFile] = []
    for folder, names, file_names in os.walk(root, onerror=_refuse_folder, followlinks=False):
        here = Path(folder)
        for name in names:
            if name.startswith(".") or (here / name).is_symlink():
                reason = "hidden folder" if name.startswith(".") else "linked folder"
                tally.skip(reason, f"{here / name}: {reason}")
        names[:] = [name for name in names if not name.startswith(".")]
        for name in file_names:
            path = here / name
            reason = _reason_to_skip(path, home)
            if reason:
                tally.skip(reason, f"{path}: {reason}")
            else:
                found.append(SourceFile(path, path.relative_to(root).as_posix(), False))
    return sorted(found, key=lambda source: source.label.split("/"))


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"folder {error.filename} cannot be read: {error.strerror}; make it readable or leave it out")


def _reason_to_skip(path: Path, home: Path) -> str:
    if path.name.startswith("."):
        return "hidden file"
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    except (OSError, RuntimeError):
        return "broken link"
    if path.is_symlink() and not target.is_relative_to(home):
        return "link that leaves the folder"
    if not stat.S_ISREG(mode):
        return "special file"
    return "empty file" if target.stat().st_size == 0 else ""


def _read_one(source: SourceFile, options: ReadOptions) -> Iterator[formats.Item]:
    limit = options.max_document_bytes
    kind = formats.kind_of(source.path.name)
    where = str(source.path)
    if kind == "jsonl":
        return formats.read_jsonl(source.path, where, options.text_field, limit)
    if kind == "parquet":
        return formats.read_parquet(source.path, where, options.text_field, limit)
    if kind == "unsupported" and source.named:
        return iter([DataError(f"{where}: {Path(source.path.name).suffix} is not read; convert it to JSONL or text")])
    cut = options.piece_length
    try:
        is_short = source.path.stat().st_size <= _WHOLE_FILE_BYTES
    except OSError as error:
        return iter([DataError(f"{where} cannot be read: {error.strerror or error}; was it moved away?")])
    if not source.named and is_short and not formats.is_gzip(source.path):
        cut = 0
    plan = formats.TextPlan(options.document_separator, cut, limit, refuse_binary=source.named)
    return formats.read_text(source.path, where, plan)


def _usable(document: Document, options: ReadOptions, tally: Tally) -> Iterator[Document]:
    if not document.text or document.text.isspace():
        tally.skip("empty document", f"{document.source}, {document.row}: the document is empty")
    elif options.recut_length and len(document.text) > options.recut_length:
        for piece in cut(document.text, options.recut_length):
            yield Document(piece, document.source, document.row)
    else:
        yield document
