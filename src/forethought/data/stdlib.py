"""The embedded default corpus: the source of the running Python's own standard library, without its tests.

A fresh machine has it already, so a first run needs no download. The order is fixed (sorted paths) and the files that
differ from machine to machine are left out, so one version of Python gives one hash wherever it is installed.
"""

from __future__ import annotations

import os
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from forethought.core.errors import DataError
from forethought.data.reading import SourceFile, fingerprint

STDLIB = "stdlib"
_LEFT_OUT_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
_MACHINE_PREFIXES = ("_sysconfigdata", "sitecustomize", "usercustomize")


@dataclass(frozen=True, slots=True)
class StdlibFacts:
    """Size and identity of the embedded corpus, for printing: Python version, files, bytes and SHA-256."""

    version: str
    num_files: int
    num_bytes: int
    sha256: str


def stdlib_files(folder: str | Path | None = None) -> list[SourceFile]:
    """List the source files of the standard library in their fixed order.

    Raises:
        DataError: this Python carries no source of its standard library (a frozen or stripped build).
    """
    root = Path(folder or sysconfig.get_path("stdlib"))
    found: list[SourceFile] = []
    for here, names, file_names in os.walk(root, followlinks=False):
        names[:] = [name for name in names if not _is_left_out(name)]
        for name in file_names:
            path = Path(here) / name
            if name.endswith(".py") and not name.startswith(_MACHINE_PREFIXES) and _is_source(path):
                found.append(SourceFile(path, path.relative_to(root).as_posix(), False))
    if not found:
        raise DataError(f"this Python has no standard library source in {root}; give a corpus of your own instead")
    return sorted(found, key=lambda source: source.label.split("/"))


def stdlib_facts(folder: str | Path | None = None) -> StdlibFacts:
    """Return the size and the SHA-256 of the embedded corpus.

    Raises:
        DataError: as stdlib_files.
    """
    sources = stdlib_files(folder)
    size = sum(source.path.stat().st_size for source in sources)
    return StdlibFacts(platform.python_version(), len(sources), size, fingerprint(sources))


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name in _LEFT_OUT_FOLDERS


def _is_source(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size > 0
