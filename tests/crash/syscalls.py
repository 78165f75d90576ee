"""A layer under the library's file work: every call that changes the disk is announced before it is made.

It patches the functions of `os` and the raw file class that the library uses, so it also sees calls that have no fault
point, and it can make the n-th of them fail or record them all for a replay.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from forethought.core import files


@dataclass(frozen=True)
class Call:
    """One call: its name, the absolute path, and its further arguments."""

    name: str
    path: str
    facts: dict[str, Any] = field(default_factory=dict)


Hook = Callable[[Call], None]


def _absolute(path: Any, directory: int | None = None) -> str:
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    base = "" if directory is None else os.readlink(f"/proc/self/fd/{directory}")
    return os.path.join(base or os.getcwd(), os.fspath(path))


def _watched(hook: Hook, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any, *arguments: Any, dir_fd: int | None = None, **rest: Any) -> Any:
        facts: dict[str, Any] = {}
        if name in ("rename", "replace"):
            facts["target"] = _absolute(arguments[0])
        if name == "truncate":
            facts["length"] = arguments[0]
        hook(Call(name, _absolute(path, dir_fd), facts))
        return real(path, *arguments, **rest) if dir_fd is None else real(path, *arguments, dir_fd=dir_fd, **rest)

    return call


def _file_class(hook: Hook, base: type) -> type:
    class Watched(base):
        def __init__(self, path: Any, mode: str) -> None:
            self.place = _absolute(path)
            hook(Call("open", self.place, {"mode": mode}))
            super().__init__(path, mode)

        def write(self, data: Any) -> int:
            hook(Call("write", self.place, {"data": bytes(data)}))
            return super().write(data)

    return Watched


@contextmanager
def watched(hook: Hook) -> Generator[None, None, None]:
    """Announce every changing call inside the block to the hook, which may raise to make the call fail."""
    names = ("rename", "replace", "mkdir", "unlink", "remove", "rmdir", "fsync", "truncate")
    patches: dict[str, Any] = {name: _watched(hook, name, getattr(os, name)) for name in names}
    with (
        mock.patch.multiple(os, **patches),
        mock.patch.object(files, "_DurableFile", _file_class(hook, files._DurableFile)),
    ):
        yield


def failing(number: int, error: int) -> tuple[Hook, list[Call]]:
    """Return a hook that makes call `number` (from 1) fail with an errno, and the list of calls that it fills."""
    calls: list[Call] = []

    def hook(call: Call) -> None:
        calls.append(call)
        if len(calls) == number:
            raise OSError(error, os.strerror(error), call.path)

    return hook, calls


def under(root: Path, hook: Hook) -> Hook:
    """Return a hook that only hears of calls inside a directory."""
    prefix = f"{root}{os.sep}"

    def selected(call: Call) -> None:
        if call.path.startswith(prefix) or call.path == str(root):
            hook(call)

    return selected
