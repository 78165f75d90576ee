"""JSON-lines records: one object a line, readable after a crash tore the last one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from forethought.core import files
from forethought.core.errors import ArtefactError, TrainingError
from forethought.core.faults import fault


def encode(record: Mapping[str, Any], name: str) -> bytes:
    """Return a record as one line of the file of this name.

    Raises:
        TrainingError: a figure is NaN or infinite, which JSON has no word for.
    """
    try:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        odd = sorted(key for key, value in record.items() if isinstance(value, float) and not math.isfinite(value))
        raise TrainingError(
            f"a record for {name} holds a figure that is not finite ({', '.join(odd) or error}): {dict(record)!r}; "
            "lower the learning rate, or log a finite figure"
        ) from error
    return line.encode("utf-8", "backslashreplace")


def read_records(path: Path | str) -> list[dict[str, Any]]:
    """Read a JSON-lines file; a last line that a crash left torn is passed over.

    Raises:
        ArtefactError: a line before the last is not a JSON object; the message names file and line.
    """
    return list(_records(Path(path)))


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    if not path.is_file():
        raise ArtefactError(f"{path} is no regular file; give a directory that this library wrote")
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return
            raise ArtefactError(f"{path} line {number} is not JSON ({error}); remove the line") from error
        if not isinstance(record, dict):
            raise ArtefactError(f"{path} line {number} holds no JSON object; remove the line")
        yield record


def cut(path: Path, length: int) -> None:
    """Cut a file to a length in bytes.

    Raises:
        StorageError: the disk refused.
    """
    with files.explained("cut", path):
        fault("file.truncate")
        os.truncate(path, length)


def cut_torn(path: Path) -> None:
    """Drop the part of a line that a killed writer left at the end, so that the next record starts a line."""
    if path.is_file() and not (data := path.read_bytes()).endswith(b"\n") and data:
        cut(path, data.rfind(b"\n") + 1)
