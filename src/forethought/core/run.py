"""A run is a directory: its config, environment, metrics, checkpoints and result, written so that a kill loses little.

metrics.jsonl holds only what a rerun reproduces bit for bit; wall-clock figures go to timings.jsonl, which nothing
compares. On resume both are cut back to what the checkpoint vouches for.
"""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from forethought.core import files
from forethought.core.artefact import ARTEFACT, kind_bytes
from forethought.core.checkpoint import CheckpointStore
from forethought.core.config import difference, digest, flatten, to_dict
from forethought.core.environment import environment
from forethought.core.errors import (
    ArtefactError,
    ConfigError,
    RunExistsError,
    StorageError,
    unknown_name,
)
from forethought.core.litter import is_litter
from forethought.core.records import cut, cut_torn, encode
from forethought.core.records import read_records as read_records

Exists = Literal["resume", "refuse", "replace"]

CONFIG, ENVIRONMENT, RESULT = "config.json", "environment.json", "result.json"
METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
LOCK = ".lock"


class Run:
    """One run directory, open for writing by one process at a time.

    Build it with `Run.open`; use it as a context manager, or call `close`.
    """

    def __init__(self, directory: Path, *, lock: BinaryIO | None, keep: int, resumed: bool) -> None:
        self.directory = directory
        self.resumed = resumed
        self.checkpoints = CheckpointStore(directory / "checkpoints", keep=keep)
        self._lock = lock
        self._streams: dict[str, BinaryIO] = {}

    @classmethod
    def open(
        cls,
        directory: Path | str,
        *,
        config: object,
        recipe: str,
        recipe_config: object | None = None,
        exists: Exists = "refuse",
        allow: tuple[str, ...] = (),
        keep: int = 2,
    ) -> Run:
        """Create a run directory, or open the one that is there as `exists` says.

        `allow` names config leaves (dotted) that may differ from the recorded ones on resume.

        Raises:
            RunExistsError: the directory exists and may not be used, is no run, or another process has it open.
            ConfigError: on resume, the config differs from the recorded one outside `allow`.
            StorageError: the disk refused.
        """
        directory = Path(directory)
        if exists not in ("resume", "refuse", "replace"):
            raise unknown_name("choice for an existing run", exists, ("resume", "refuse", "replace"))
        files.sweep(directory.parent)
        if directory.exists():
            _check_usable(directory, exists)
        files.make_directory(directory)
        lock = _acquire(directory)
        try:
            # Asked again under the lock: until then another process may have made a run of this name, and ended.
            _check_usable(directory, exists)
            run = cls(directory, lock=lock, keep=keep, resumed=False)
        except BaseException:
            lock.close()
            raise
        try:
            run._begin(config, recipe, recipe_config, resume=exists == "resume", allow=allow)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def follow(cls, directory: Path | str) -> Run:
        """Return a view of a run that another process writes, for other ranks: it reads, and writes nothing."""
        return cls(Path(directory), lock=None, keep=2, resumed=False)

    def log(self, record: Mapping[str, Any], *, timing: Mapping[str, Any] | None = None) -> None:
        """Append a record to metrics.jsonl and, where given, its wall-clock companion to timings.jsonl.

        Raises:
            StorageError: the disk refused.
        """
        self._append(METRICS, record)
        if timing is not None:
            self._append(TIMINGS, timing)

    def position(self) -> dict[str, int]:
        """Return the lengths in bytes of the two record files once all is durable, for a checkpoint to vouch for."""
        lengths: dict[str, int] = {}
        for name in (METRICS, TIMINGS) if self._lock else ():
            stream = self._stream(name)
            with files.explained("write", self.directory / name):
                files.fsync_file(stream)
                lengths[name] = stream.tell()
        if lengths:
            with files.explained("write", self.directory):
                files.fsync_directory(self.directory)
        return lengths

    def rewind(self, position: Mapping[str, int]) -> None:
        """Cut the record files back to what a checkpoint vouched for; an empty mapping empties them.

        Raises:
            ArtefactError: a file is shorter than the checkpoint says, so records were lost or edited.
        """
        for name in (METRICS, TIMINGS) if self._lock else ():
            stream = self._streams.pop(name, None)
            if stream is not None:
                with files.explained("write", self.directory / name):
                    stream.close()
            path, length = self.directory / name, position.get(name, 0)
            size = path.stat().st_size if path.exists() else 0
            if size < length:
                raise ArtefactError(f"{path} has {size} bytes, the checkpoint saw {length}: records were removed")
            if path.exists():
                cut(path, length)

    def metrics(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return the records so far, all or those of one event."""
        self.flush()
        records = read_records(self.directory / METRICS)
        return [record for record in records if event is None or record.get("event") == event]

    def flush(self) -> None:
        """Hand buffered records to the operating system."""
        for name, stream in self._streams.items():
            with files.explained("write", self.directory / name):
                stream.flush()

    def write_result(self, result: Mapping[str, Any]) -> Path:
        """Write result.json whole, the figures that a reader would quote, and return its path."""
        self.flush()
        path = self.directory / RESULT
        files.write_json(path, dict(result))
        return path

    def result(self) -> dict[str, Any] | None:
        """Return result.json, or None while the run is not finished."""
        path = self.directory / RESULT
        return files.read_json(path, what="result") if path.exists() else None

    def discard(self) -> None:
        """Remove a run that failed before it made anything, so that a corrected command may use its name."""
        if self._lock is not None and not self.resumed and not self.checkpoints.steps():
            self.close()
            files.remove_directory(self.directory)

    def close(self) -> None:
        """Flush the records and release the directory.

        Raises:
            StorageError: the disk refused the last records; the directory is released all the same.
        """
        try:
            for name, stream in self._streams.items():
                with files.explained("write", self.directory / name):
                    stream.close()
        finally:
            self._streams.clear()
            if self._lock is not None:
                self._lock.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(
        self, config: object, recipe: str, recipe_config: object | None, *, resume: bool, allow: tuple[str, ...]
    ) -> None:
        echo = _echo(config, recipe, recipe_config)
        if resume and (self.directory / CONFIG).exists():
            _check_same(self.directory, echo, allow)
            for name in (METRICS, TIMINGS):
                cut_torn(self.directory / name)
            self.resumed = True
        else:
            _clear(self.directory)
            files.replace_file(self.directory / ARTEFACT, kind_bytes("run", recipe=recipe))
            files.write_json(self.directory / CONFIG, echo)
        # A finished run that is opened again runs nothing, so what it ran on stays as it was.
        if not (self.directory / RESULT).exists():
            files.write_json(self.directory / ENVIRONMENT, environment())
        files.sweep(self.directory)
        files.sweep(self.checkpoints.directory)

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        if self._lock is None:
            return
        with files.explained("write", self.directory / name):
            self._stream(name).write(encode(record, name))

    def _stream(self, name: str) -> BinaryIO:
        if name not in self._streams:
            self._streams[name] = files.open_write(self.directory / name, append=True)
        return self._streams[name]


def open_run(directory: Path | str) -> dict[str, Any]:
    """Return what a run directory holds, for reading only: config, environment, result and records.

    Raises:
        ArtefactError: the directory is not a run, or a file in it is malformed.
    """
    directory = Path(directory)
    result = directory / RESULT
    return {
        "directory": directory,
        "config": files.read_json(directory / CONFIG, what="run config", inside=True),
        "environment": files.read_json(directory / ENVIRONMENT, what="run environment", inside=True),
        "result": files.read_json(result, what="result", inside=True) if result.exists() else None,
        "metrics": read_records(directory / METRICS),
        "timings": read_records(directory / TIMINGS),
    }


def _check_usable(directory: Path, exists: Exists) -> None:
    if not directory.is_dir():
        raise RunExistsError(f"{directory} is a file; give a directory for the run")
    # A kill or a power loss in the first moments of a run leaves no more than this.
    if all(entry.name == LOCK or is_litter(entry.name) for entry in directory.iterdir()):
        return
    if exists == "refuse":
        raise RunExistsError(
            f"{directory} already exists; say --exists resume to go on with it, --exists replace to start it anew, "
            "or give another directory"
        )
    if not _is_run(directory):
        raise RunExistsError(f"{directory} holds files that are no run of this library; give another directory")


def _is_run(directory: Path) -> bool:
    """Say whether either of the two files that name a run's kind does; a model and a corpus have such files too."""
    for name in (ARTEFACT, CONFIG):
        try:
            if files.read_json(directory / name, what="run description").get("kind") == "run":
                return True
        except ArtefactError:
            continue
    return False


def _acquire(directory: Path) -> BinaryIO:
    with files.explained("lock", directory):
        lock = files.open_write(directory / LOCK, append=True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise RunExistsError(
            f"{directory} is in use by another process; wait for it or give another directory"
        ) from error
    except OSError as error:
        lock.close()
        raise StorageError(
            f"could not lock {directory}: {error.strerror}; give a directory on a file system with file locks"
        ) from error
    return lock


def _echo(config: object, recipe: str, recipe_config: object | None) -> dict[str, Any]:
    values = to_dict(config)
    changes = difference(config, recipe_config) if recipe_config is not None else {}
    return {"kind": "run", "recipe": recipe, "config": values, "difference": changes, "digest": digest(values)}


def _check_same(directory: Path, echo: Mapping[str, Any], allow: tuple[str, ...]) -> None:
    recorded = files.read_json(directory / CONFIG, what="run config")
    values = recorded.get("config")
    if not isinstance(values, dict):
        raise ArtefactError(f"{directory / CONFIG} records no config; restore it, or start with --exists replace")
    before, now = flatten(cast(dict[str, Any], values)), flatten(echo["config"])
    changed = sorted(
        name for name in before.keys() | now.keys() if before.get(name) != now.get(name) and name not in allow
    )
    if changed:
        first = changed[0]
        raise ConfigError(
            f"{directory} was started with another config: {', '.join(changed)} differ "
            f"({first}: recorded {before.get(first)!r}, given {now.get(first)!r}); "
            "give the recorded values, or --exists replace, or another directory"
        )


def _clear(directory: Path) -> None:
    """Empty a directory that is to be replaced, keeping the lock that this process holds."""
    # The config goes first and the kind last, so that a kill in between leaves what can still be resumed or replaced.
    order = {CONFIG: 0, ARTEFACT: 2}
    for entry in sorted(directory.iterdir(), key=lambda path: order.get(path.name, 1)):
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            files.remove_directory(entry)
        else:
            with files.explained("remove", entry):
                entry.unlink()
