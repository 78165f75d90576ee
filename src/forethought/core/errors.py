"""The one tree of errors; every message says what was given, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ForethoughtError(Exception):
    """Base of every error that this library raises on purpose; a verb that meets one exits with status 1."""


class InputError(ForethoughtError, ValueError):
    """Something the user gave cannot be used; a verb that meets one exits with status 2."""


class ConfigError(InputError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(InputError):
    """A corpus, a shard or a data set cannot be read; the message names the file and, where there is one, the line."""


class ArtefactError(InputError):
    """A directory is not an artefact of a known kind, or a file in it is malformed or unsafe."""


class RunExistsError(InputError, FileExistsError):
    """A run directory is already there and no choice between resume, refuse and replace allows using it."""


class MissingExtraError(ForethoughtError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class CheckpointError(ForethoughtError):
    """A checkpoint is incomplete or damaged; the message names the file."""


class StorageError(ForethoughtError, OSError):
    """The disk refused a write or a read; what was published before is untouched."""


class TrainingError(ForethoughtError, ArithmeticError):
    """Training cannot go on, for example because the loss is no longer finite."""


class InterruptedRunError(ForethoughtError):
    """The run was asked to stop; it was saved and can be resumed."""


class TaskError(ForethoughtError, RuntimeError):
    """A fanned-out task failed after its retries; the message names the task and its log."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ' Did you mean ...?' for the closest allowed name, or an empty string where none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown_name(what: str, name: str, allowed: Iterable[str]) -> ConfigError:
    """Build the error for a name outside a closed list, with the list and the nearest match."""
    names = sorted(allowed)
    return ConfigError(f"unknown {what} {name!r}; known: {', '.join(names)}.{nearest(name, names)}")
