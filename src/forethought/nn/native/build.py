"""Compile the kernels with the system's C++ compiler into a private cache, once for each machine and source.

The library's name is a hash of everything that its code depends on: source, compiler, flags, processor. It is published
by one rename with a manifest of its bytes, so two processes may build at once, and a damaged library is built anew and
never loaded. A cache that somebody else could write to is refused: its code would run in this process.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from forethought.core import files
from forethought.core.errors import CheckpointError, ForethoughtError, RunExistsError, StorageError

COMPILERS = ("c++", "g++", "clang++")
LIBRARY = "kernels.so"
_SOURCES = Path(__file__).resolve().parent
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
_TIMEOUT_SECONDS = 300


class NativeError(ForethoughtError, RuntimeError):
    """The native kernels cannot be built or loaded here; the message says why."""


def library_path(cache: Path | None = None) -> Path:
    """Return the compiled library, building it where the cache has none that is whole.

    `cache` is the directory of compiled libraries, by default $XDG_CACHE_HOME/forethought/native, or the same under
    ~/.cache.

    Raises:
        NativeError: there is no compiler, it fails, or the cache belongs to somebody else or is open to others.
        StorageError: the cache cannot be written.
    """
    cache = _default_cache() if cache is None else cache
    compiler = _compiler()
    _own(cache)
    reasons: list[str] = []
    for flags in ((*_FLAGS, "-march=native"), _FLAGS):
        target = cache / _name(compiler, flags)
        try:
            _ensure(target, compiler, flags)
        except subprocess.SubprocessError as error:
            reasons.append(_complaint(error))
            continue
        _check_private(target)
        _check_private(target / LIBRARY)
        return target / LIBRARY
    raise NativeError(f"{compiler} could not compile the native kernels: {reasons[0]}. Use the torch backend")


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "forethought" / "native"


def _compiler() -> str:
    for name in COMPILERS:
        found = shutil.which(name)
        if found is not None:
            return found
    raise NativeError(
        f"no C++ compiler was found (looked for {', '.join(COMPILERS)}); install one, or use the torch backend"
    )


def _own(cache: Path) -> None:
    """Make the cache, readable by its owner alone, and refuse one that others could fill."""
    with files.explained("create", cache):
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.mkdir(mode=0o700, exist_ok=True)
    _check_private(cache)


def _check_private(path: Path) -> None:
    facts = path.lstat()
    if stat.S_ISLNK(facts.st_mode):
        raise NativeError(f"{path} is a link; native code is loaded from a directory of one's own. Remove it")
    if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NativeError(
            f"{path} belongs to user {facts.st_uid} with mode {stat.S_IMODE(facts.st_mode):o}; native code is loaded "
            f"only from what user {os.getuid()} owns and nobody else can write. Remove it, or set XDG_CACHE_HOME"
        )


def _sources() -> list[Path]:
    return sorted(path for path in _SOURCES.iterdir() if path.suffix in (".cpp", ".h"))


def _name(compiler: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
    )
    digest = hashlib.sha256()
    parts = [compiler, version.stdout, *flags, platform.machine(), _processor()]
    for part in (*(text.encode() for text in parts), *(path.read_bytes() for path in _sources())):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def _processor() -> str:
    """What the processor can do, as far as the system tells: its model and the names of its instruction sets."""
    table = Path("/proc/cpuinfo")
    if not table.is_file():
        return platform.processor()
    wanted = ("flags", "Features", "model name", "CPU part")
    lines = table.read_text(errors="replace").split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(wanted))


def _ensure(target: Path, compiler: str, flags: tuple[str, ...]) -> None:
    present = target.exists()
    if present and _is_whole(target):
        return
    library = _compile(compiler, flags, target.parent)
    try:
        files.publish(target, {LIBRARY: library}, replace=present)
    except (RunExistsError, StorageError):
        # Another process may have been quicker; its library is the same.
        if not (target.exists() and _is_whole(target)):
            raise


def _is_whole(target: Path) -> bool:
    _check_private(target)
    try:
        files.verify(target)
    except CheckpointError:
        return False
    return True


def _compile(compiler: str, flags: tuple[str, ...], cache: Path) -> bytes:
    with tempfile.TemporaryDirectory(prefix=".build-", dir=cache) as scratch:
        output = Path(scratch) / LIBRARY
        command = [compiler, *flags, "-o", str(output), str(_SOURCES / "kernels.cpp")]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_SECONDS)
        return output.read_bytes()


def _complaint(error: subprocess.SubprocessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in str(error.stderr).splitlines() if "error" in line] or str(error.stderr).splitlines()
        return lines[0] if lines else f"exit status {error.returncode}"
    return str(error)
