"""The readers of the single formats: text, JSONL and Parquet, each plain or (but for Parquet) gzip-compressed.

A reader yields a Document, or the DataError that stands for something it could not read, or Ignored for what is left
out without being an error. It holds one block, one line or one batch of rows in memory, whatever a file expands to.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from forethought.core import extras
from forethought.core.errors import DataError, nearest
from forethought.data.cutting import cut

_BLOCK_BYTES = 1 << 18
_SNIFF_BYTES = 8192
_ROWS_PER_BATCH = 64
_UTF8_MARK = b"\xef\xbb\xbf"
_GZIP_MARK = b"\x1f\x8b"
_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".json": "unsupported"}


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its text, the file it came from and its line (JSONL), row (Parquet) or number (text), from 1."""

    text: str
    source: str
    row: int


@dataclass(frozen=True, slots=True)
class Ignored:
    """Something left out that is no error, such as a binary file in a folder."""

    reason: str


@dataclass(frozen=True, slots=True)
class TextPlan:
    """How a text file becomes documents: a separator, else pieces of a length in characters, else one document."""

    separator: str
    piece_length: int
    max_bytes: int
    refuse_binary: bool


Item = Document | DataError | Ignored


def kind_of(name: str) -> str:
    """Return "text", "jsonl", "parquet" or "unsupported" from a file name, looking through a final .gz."""
    stem = name.lower().removesuffix(".gz")
    return _KINDS.get(Path(stem).suffix, "text")


def is_gzip(path: Path) -> bool:
    """Say whether a file starts as gzip does."""
    with suppress(OSError), open(path, "rb") as source:
        return source.read(2) == _GZIP_MARK
    return False


def read_jsonl(path: Path, where: str, text_field: str, max_bytes: int) -> Iterator[Item]:
    """Yield one item a line of a JSONL file; blank lines are passed over."""
    stream = _open(path, where)
    if isinstance(stream, DataError):
        yield stream
        return
    number = 0
    with stream:
        while True:
            try:
                line = stream.readline(max_bytes + 1)
                too_long = len(line) > max_bytes and not line.endswith(b"\n")
                if too_long:
                    _finish_line(stream)
            except (OSError, EOFError, zlib.error) as error:
                yield _damaged(f"{where}, after line {number}", error)
                return
            if not line:
                break
            number += 1
            if too_long:
                yield _too_long(f"{where}, line {number}", max_bytes)
            elif line.strip():
                yield _parse_line(line, where, number, text_field)
    if number == 0:
        yield _empty(where)


def read_text(path: Path, where: str, plan: TextPlan) -> Iterator[Item]:
    """Yield the documents of a text file, or the error that ends it."""
    stream = _open(path, where)
    if isinstance(stream, DataError):
        yield stream
        return
    with stream:
        try:
            head = cast(Any, stream).peek(_SNIFF_BYTES)[:_SNIFF_BYTES]
        except (OSError, EOFError, zlib.error) as error:
            yield _damaged(where, error)
            return
        if b"\0" in head:
            if plan.refuse_binary:
                yield DataError(f"{where} is binary (a zero byte near its start); give UTF-8 text, JSONL or Parquet")
            else:
                yield Ignored("binary file")
            return
        yield from _documents(stream, where, plan)


def read_parquet(path: Path, where: str, text_field: str, max_bytes: int) -> Iterator[Item]:
    """Yield one item a row of a Parquet file, a small batch of rows in memory at a time.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    arrow = extras.require("pyarrow", extra="data", purpose="reading Parquet")
    parquet = extras.require("pyarrow.parquet", extra="data", purpose="reading Parquet")
    if is_gzip(path):
        yield DataError(f"{where}: Parquet compressed with gzip is not read; decompress it")
        return
    row = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as table:
            problem = _column_problem(arrow, table.schema_arrow, where, text_field)
            if problem is not None:
                yield problem
                return
            for batch in table.iter_batches(batch_size=_ROWS_PER_BATCH, columns=[text_field], use_threads=False):
                for value in batch.column(0):
                    row += 1
                    yield _parquet_value(value, where, row, text_field, max_bytes)
    except (arrow.ArrowException, OSError, EOFError) as error:
        yield DataError(f"{where}, after row {row}: damaged or cut short ({_first_line(error)}); restore the file")
        return
    if row == 0:
        yield _empty(where)


def _open(path: Path, where: str) -> BinaryIO | DataError:
    try:
        if path.name.lower().endswith(".gz") or is_gzip(path):
            return cast(BinaryIO, gzip.open(path, "rb"))
        return open(path, "rb")
    except OSError as error:
        return DataError(f"{where} cannot be read: {error.strerror or error}; make it readable or leave it out")


def _finish_line(stream: BinaryIO) -> None:
    while True:
        rest = stream.readline(_BLOCK_BYTES)
        if not rest or rest.endswith(b"\n"):
            return


def _parse_line(line: bytes, where: str, number: int, text_field: str) -> Item:
    place = f"{where}, line {number}"
    try:
        if number == 1:
            line = line.removeprefix(_UTF8_MARK)
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return DataError(f"{place}: not UTF-8 at byte {error.start + 1} of the line; convert the file to UTF-8")
    except (ValueError, RecursionError) as error:
        return DataError(f"{place}: not valid JSON ({_first_line(error)}); one JSON object a line is expected")
    if not isinstance(value, dict):
        return DataError(f"{place}: holds {type(value).__name__}; a JSON object is expected")
    if text_field not in value:
        return _missing_field(place, text_field, [str(name) for name in value])
    return _checked(value[text_field], place, where, number, text_field)


def _checked(text: object, place: str, where: str, row: int, text_field: str) -> Item:
    if not isinstance(text, str):
        return DataError(f"{place}: field {text_field!r} holds {type(text).__name__}; a string is expected")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return DataError(f"{place}: half a surrogate pair at character {error.start + 1}; mend the escape sequence")
    return Document(text, where, row)


def _missing_field(place: str, text_field: str, names: list[str]) -> DataError:
    shown = ", ".join(repr(name[:40]) for name in names[:8]) or "none"
    hint = nearest(text_field, names[:100])
    return DataError(f"{place}: no field {text_field!r}; its fields are {shown}.{hint} Set text_field to the right one")


def _column_problem(arrow: Any, schema: Any, where: str, text_field: str) -> DataError | None:
    if text_field not in schema.names:
        return _missing_field(where, text_field, list(schema.names))
    found = schema.field(text_field).type
    if not (arrow.types.is_string(found) or arrow.types.is_large_string(found)):
        return DataError(f"{where}: column {text_field!r} holds {found}; strings are expected")
    return None


def _parquet_value(value: Any, where: str, row: int, text_field: str, max_bytes: int) -> Item:
    place = f"{where}, row {row}"
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        return DataError(f"{place}: not UTF-8 at byte {error.start + 1}; convert the column to UTF-8")
    if isinstance(text, str) and _exceeds(text, max_bytes):
        return _too_long(place, max_bytes)
    return _checked(text, place, where, row, text_field)


def _documents(stream: BinaryIO, where: str, plan: TextPlan) -> Iterator[Item]:
    number, pending = 0, ""
    whole = bool(plan.separator) or not plan.piece_length
    for text in _decoded(stream, where):
        if isinstance(text, DataError):
            yield text
            return
        pending += text
        pieces, pending = _split(pending, plan)
        for piece in pieces:
            number += 1
            too_long = whole and _exceeds(piece, plan.max_bytes)
            yield (
                _too_long(f"{where}, document {number}", plan.max_bytes) if too_long else Document(piece, where, number)
            )
        if whole and _exceeds(pending, plan.max_bytes):
            yield _too_long(f"{where}, document {number + 1}", plan.max_bytes)
            return
    if pending:
        number += 1
        yield Document(pending, where, number)
    if number == 0:
        yield _empty(where)


def _split(pending: str, plan: TextPlan) -> tuple[list[str], str]:
    if plan.separator:
        *pieces, pending = pending.split(plan.separator)
        return [piece for piece in pieces if piece.strip()], pending
    if plan.piece_length and len(pending) > plan.piece_length:
        *pieces, pending = cut(pending, plan.piece_length)
        return pieces, pending
    return [], pending


def _decoded(stream: BinaryIO, where: str) -> Iterator[str | DataError]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, first = 1, True
    while True:
        try:
            block = stream.read(_BLOCK_BYTES)
            if first:
                block, first = block.removeprefix(_UTF8_MARK), False
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line += bytes(error.object[: error.start]).count(b"\n")
            found = error.object[error.start]
            yield DataError(f"{where}, line {line}: not UTF-8 (byte 0x{found:02x}); convert the file to UTF-8")
            return
        except (OSError, EOFError, zlib.error) as error:
            yield _damaged(f"{where}, after line {line}", error)
            return
        line += block.count(b"\n")
        if text:
            yield text
        if not block:
            return


def _damaged(place: str, error: BaseException) -> DataError:
    return DataError(f"{place}: the file is damaged or cut short ({_first_line(error)}); restore it from its source")


def _exceeds(text: str, max_bytes: int) -> bool:
    # The number of characters bounds that of bytes from both sides, so few texts are encoded to be judged.
    if len(text) > max_bytes or text.isascii():
        return len(text) > max_bytes
    return 4 * len(text) > max_bytes and len(text.encode("utf-8", "surrogatepass")) > max_bytes


def _too_long(place: str, max_bytes: int) -> DataError:
    return DataError(f"{place}: longer than max_document_bytes={max_bytes}; raise it, or cut the document")


def _empty(where: str) -> DataError:
    return DataError(f"{where} is empty; give a file with text in it")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
