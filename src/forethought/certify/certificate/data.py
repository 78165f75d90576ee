"""The data a certificate speaks of, and their fingerprint: labelled examples, or a sequence of tokens."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from forethought.core.errors import DataError

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Examples:
    """Inputs [n, ...] and class numbers [n]."""

    inputs: np.ndarray
    labels: np.ndarray
    kind: Literal["examples"] = field(default="examples", init=False)

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.labels)

    @property
    def sha256(self) -> str:
        """The hash of types, shapes and values, in order."""
        state = hashlib.sha256(b"forethought examples 1\0")
        _absorb(state, self.inputs)
        _absorb(state, self.labels.astype("<i8"))
        return state.hexdigest()


@dataclass(frozen=True)
class Tokens:
    """A sequence of token numbers [N]; the type it is stored in does not count."""

    tokens: np.ndarray
    kind: Literal["tokens"] = field(default="tokens", init=False)

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self.tokens)

    @property
    def sha256(self) -> str:
        """The hash of the token numbers, in order."""
        state = hashlib.sha256(b"forethought tokens 1\0")
        state.update(f"{self.tokens.shape}\0".encode())
        for start in range(0, len(self.tokens), _BLOCK):
            state.update(np.ascontiguousarray(self.tokens[start : start + _BLOCK], dtype="<i8").tobytes())
        return state.hexdigest()


Data = Examples | Tokens


def as_data(data: object) -> Data:
    """Return examples from (inputs, labels), tokens from one array, or what is already either.

    Raises:
        DataError: it is neither.
    """
    if isinstance(data, Examples | Tokens):
        return data
    if isinstance(data, tuple | list) and len(data) == 2 and all(hasattr(part, "shape") for part in data):
        return Examples(np.asarray(data[0]), np.asarray(data[1]))
    if hasattr(data, "shape"):
        return Tokens(np.asarray(data))
    raise DataError(f"data of type {type(data).__name__}: give (inputs, labels) as arrays, or one array of tokens")


def load_data(path: Path | str) -> Data:
    """Read a .npz with `inputs` and `labels` or with `tokens`, or a .npy of tokens.

    Raises:
        DataError: the file is missing, of another kind, or holds other arrays.
    """
    path = Path(path)
    try:
        with open(path, "rb") as source:
            opened = np.load(source, allow_pickle=False)
            if isinstance(opened, np.ndarray):
                return Tokens(opened)
            names = set(opened.files)
            if {"inputs", "labels"} <= names:
                return Examples(opened["inputs"], opened["labels"])
            if "tokens" in names:
                return Tokens(opened["tokens"])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no readable .npz or .npy file: {error}") from error
    raise DataError(f"{path} holds {sorted(names)}; give `inputs` and `labels`, or `tokens`")


def _absorb(state: hashlib._Hash, array: np.ndarray) -> None:
    little = array.dtype.newbyteorder("<")
    state.update(f"{little.str}{array.shape}\0".encode())
    rows = max(1, _BLOCK // max(1, array[:1].size))
    for start in range(0, len(array), rows):
        state.update(np.ascontiguousarray(array[start : start + rows], dtype=little).tobytes())
