"""Characters as tokens of an alphabet that no data chose: newline and the printable characters of ASCII."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import DataError

PRINTABLE = "\n" + "".join(chr(code) for code in range(32, 127))
"""96 characters; any other becomes a blank (those beyond ASCII a question mark)."""
LEAST_CHARACTERS = 1000


def characters(text: str) -> NDArray[np.uint8]:
    """Return the characters of a text as places in PRINTABLE, [N]."""
    table = np.full(128, PRINTABLE.index(" "), dtype=np.uint8)
    table[[ord(character) for character in PRINTABLE]] = np.arange(len(PRINTABLE))
    return table[np.frombuffer(text.encode("ascii", errors="replace"), dtype=np.uint8)]


def read_characters(path: Path) -> NDArray[np.uint8]:
    """Return the characters of a UTF-8 text file, plain or .gz.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or is too short.
    """
    text = _read(path)
    if len(text) < LEAST_CHARACTERS:
        raise DataError(f"{path} holds {len(text)} characters; give at least {LEAST_CHARACTERS}")
    return characters(text)


def read_documents(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the characters of a JSONL file's documents (key `text`), a newline after each: training, and held out.

    Held out are documents whose `split` is neither missing nor "train"; they may be none.

    Raises:
        DataError: the file cannot be read, a line is no document, or the training documents are too short.
    """
    parts: tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]] = ([], [])
    for number, line in enumerate(_read(path).rstrip("\n").split("\n"), start=1):
        try:
            document = json.loads(line)
            held_out = document.get("split", "train") != "train"
            parts[held_out].append(characters(document["text"] + "\n"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}, line {number}: no JSON object with a `text`: {error}") from error
    train, test = (np.concatenate([np.empty(0, dtype=np.uint8), *part]) for part in parts)
    if len(train) < LEAST_CHARACTERS:
        raise DataError(f"{path} holds {len(train)} characters for training; give at least {LEAST_CHARACTERS}")
    return train, test


def _read(path: Path) -> str:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8 text: {error}; give a .txt or .jsonl file, or its .gz") from error
