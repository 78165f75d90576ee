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
    """Inputs [n, ...] and class numbers [n], and where examples come in groups the group of each, as whole numbers [n].

    With groups, certificates count groups as the independent units.

    Raises:
        DataError: the groups are not one whole number an example.
    """

    inputs: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None
    kind: Literal["examples"] = field(default="examples", init=False)

    def __post_init__(self) -> None:
        groups = self.groups
        if groups is not None and (groups.shape != (len(self.labels),) or groups.dtype.kind not in "iu"):
            raise DataError(
                f"groups have type {groups.dtype} and shape {groups.shape}; give one whole number an example"
            )

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
        if self.groups is not None:
            state.update(b"groups\0")
            _absorb(state, self.groups.astype("<i8"))
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
    """Return examples from (inputs, labels) or (inputs, labels, groups), tokens from one array, or what is either.

    Raises:
        DataError: it is neither.
    """
    if isinstance(data, Examples | Tokens):
        return data
    if isinstance(data, tuple | list) and len(data) in (2, 3) and all(hasattr(part, "shape") for part in data):
        return Examples(*(np.asarray(part) for part in data))
    if hasattr(data, "shape"):
        return Tokens(np.asarray(data))
    raise DataError(
        f"data of type {type(data).__name__}: give (inputs, labels[, groups]) as arrays, or one array of tokens"
    )


def load_data(path: Path | str) -> Data:
    """Read a .npz with `inputs` and `labels` (and `groups`) or with `tokens`, or a .npy of tokens.

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
                groups = opened["groups"] if "groups" in names else None
                return Examples(opened["inputs"], opened["labels"], groups)
            if "tokens" in names:
                return Tokens(opened["tokens"])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no readable .npz or .npy file: {error}") from error
    raise DataError(f"{path} holds {sorted(names)}; give `inputs` and `labels`, or `tokens`")


def groups_of_copies(inputs: np.ndarray) -> np.ndarray:
    """Return a group number a row [n] that bit-identical inputs share: the way to count copies once."""
    found: dict[bytes, int] = {}
    rows = np.ascontiguousarray(inputs).reshape(len(inputs), -1)
    return np.array([found.setdefault(row.tobytes(), len(found)) for row in rows], dtype=np.int64)


def _absorb(state: hashlib._Hash, array: np.ndarray) -> None:
    little = array.dtype.newbyteorder("<")
    state.update(f"{little.str}{array.shape}\0".encode())
    rows = max(1, _BLOCK // max(1, array[:1].size))
    for start in range(0, len(array), rows):
        state.update(np.ascontiguousarray(array[start : start + rows], dtype=little).tobytes())
