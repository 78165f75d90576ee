"""What crashed writers leave behind: names of temporary entries, and the sweep that clears or restores them.

A temporary name carries the writer's process id, its host and a tag of its life, so that a later process can tell
litter from the work of a writer that is still alive.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path

_LITTER_AGE_SECONDS = 24 * 3600
_LITTER = re.compile(
    r"^\.(?P<name>.+)\.(?P<what>tmp|old)-(?P<pid>[0-9]+)-(?P<host>[0-9a-f]{4})(?P<life>[0-9a-f]{4})[0-9a-f]{8}$"
)
# A container often runs every life of a program under one process id; the tag tells this life from the ones before.
_LIFE = secrets.token_hex(2)


def beside(path: Path, what: str) -> Path:
    """Return a fresh hidden name next to a path: `tmp` for what is made or removed, `old` for what is replaced."""
    return path.parent / f".{path.name}.{what}-{os.getpid()}-{_host()}{_LIFE}{secrets.token_hex(4)}"


def is_litter(name: str) -> bool:
    """Say whether a name is one that `beside` gave."""
    return _LITTER.match(name) is not None


def sweep(parent: Path | str) -> list[str]:
    """Clear what crashed writers left in a directory and return the names cleared.

    An entry goes when its writer is dead, judged by process id on the same host and by a day's age on another; one of a
    living process always stays. A target that a crash left renamed aside during a replacement gets its name back.
    """
    cleared: list[str] = []
    parent = Path(parent)
    if not parent.is_dir():
        return cleared
    for entry in sorted(parent.iterdir()):
        match = _LITTER.match(entry.name)
        if match is None or not _abandoned(entry, match):
            continue
        target = parent / match["name"]
        # Another process may sweep the same directory at this moment, or the directory may not be ours to change.
        with suppress(OSError):
            if match["what"] == "old" and not target.exists():
                os.rename(entry, target)
            elif entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
            cleared.append(entry.name)
    return cleared


def _abandoned(entry: Path, match: re.Match[str]) -> bool:
    if match["host"] != _host():
        return _age(entry) > _LITTER_AGE_SECONDS
    pid = int(match["pid"])
    if pid == os.getpid():
        return match["life"] != _LIFE
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def _age(entry: Path) -> float:
    """Return the seconds since an entry was last written or renamed; a rename moves only the second of the times."""
    try:
        facts = entry.lstat()
    except OSError:
        return 0.0
    return time.time() - max(facts.st_mtime, facts.st_ctime)


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:4]
