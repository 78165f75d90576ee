"""All file work of the library: durable writes, directories published by one rename, manifests, hashes.

The publish protocol: write every file into a staging directory beside the target, fsync each, write and fsync the
manifest (size and SHA-256 a file), fsync the staging directory, rename it onto the target, fsync the parent. A reader
accepts a directory only with a complete manifest, so a crash at any instant leaves the old state or the new one.
Every primitive announces a fault point, so that tests can make the n-th call fail or kill the process there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from forethought.core.errors import ArtefactError, CheckpointError, ConfigError, RunExistsError, StorageError
from forethought.core.faults import fault
from forethought.core.litter import beside
from forethought.core.litter import sweep as sweep

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
MAX_JSON_BYTES = 64 << 20
MAX_MANIFEST_BYTES = 4 << 20
_BUFFER = 1 << 20


class _DurableFile(io.FileIO):
    """A raw file whose every write passes a fault point."""

    def write(self, data: Any, /) -> int:
        fault("file.write")
        return super().write(data) or 0


@contextmanager
def explained(action: str, path: Path | str) -> Generator[None, None, None]:
    """Turn an OSError inside the block into one StorageError that names the action and the path."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError | RunExistsError):
            raise
        raise StorageError(
            f"could not {action} {path}: {error.strerror or error}; nothing published before was changed. "
            "Free space or mend the disk, then run the same command again"
        ) from error


def open_write(path: Path | str, *, append: bool = False) -> BinaryIO:
    """Open a file for buffered binary writing through the fault layer; the caller closes it.

    Raises:
        StorageError: the file cannot be created.
    """
    with explained("open", path):
        fault("file.open")
        return cast(BinaryIO, io.BufferedWriter(_DurableFile(path, "ab" if append else "wb"), _BUFFER))


def write_bytes(path: Path | str, data: bytes | bytearray | memoryview) -> None:
    """Write a whole file and fsync it; for a file that others read at any time use replace_file.

    Raises:
        StorageError: the disk refused the write.
    """
    with explained("write", path):
        view = memoryview(data)
        with open_write(path) as out:
            for start in range(0, len(view), _BUFFER):
                out.write(view[start : start + _BUFFER])
            fsync_file(out)


def replace_file(path: Path | str, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part: temporary file, fsync, rename.

    Raises:
        StorageError: the disk refused; the old file is untouched.
    """
    path = Path(path)
    temporary = beside(path, "tmp")
    with explained("write", path):
        try:
            write_bytes(temporary, data)
            fault("file.rename")
            os.replace(temporary, path)
            fsync_directory(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path | str, value: object) -> None:
    """Write a JSON file, sorted and indented, so that a reader never sees a part of it."""
    replace_file(path, dump_json(value))


def dump_json(value: object) -> bytes:
    """Return JSON as this library writes it: indented, UTF-8, no NaN; half a surrogate pair stays a \\u escape."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def read_json(
    path: Path | str, *, what: str = "file", limit: int = MAX_JSON_BYTES, inside: bool = False
) -> dict[str, Any]:
    """Read a JSON object, bounded in size; with `inside` a link that leaves the file's own directory is not followed.

    Raises:
        ArtefactError: the file is missing, no regular file, too large, nested too deep, not JSON or not an object.
    """
    path = Path(path)
    if inside and path.is_symlink() and path.resolve().parent != path.parent.resolve():
        raise ArtefactError(f"{what} {path} is a link out of its directory, which is not followed; copy the file here")
    try:
        value = json.loads(read_bounded(path, what=what, limit=limit))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtefactError(f"{what} {path} does not exist; give a directory that this library wrote") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{what} {path} is not valid JSON ({error}); write it again or restore it") from error
    except OSError as error:
        raise ArtefactError(f"{what} {path} cannot be read: {error.strerror}") from error
    if not isinstance(value, dict):
        raise ArtefactError(f"{what} {path} holds {type(value).__name__}; a JSON object is expected")
    return cast(dict[str, Any], value)


def read_bounded(path: Path | str, *, what: str, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; a device or a pipe, also behind a link, is refused unopened.

    Raises:
        ArtefactError: the file is larger, or not a regular file.
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ArtefactError(f"{what} {path} is no regular file; give a directory that this library wrote")
    with open(path, "rb") as source:
        data = source.read(limit + 1)
    if len(data) > limit:
        raise ArtefactError(f"{what} {path} has more than {limit} bytes, the most that is read. Is it the right file?")
    return data


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file as hexadecimal text.

    Raises:
        StorageError: the file cannot be read.
    """
    with explained("read", path), open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def fsync_directory(path: Path | str) -> None:
    """Make the names in a directory durable."""
    fault("directory.fsync")
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(handle: BinaryIO) -> None:
    """Flush an open file and make its content durable."""
    handle.flush()
    fault("file.fsync")
    os.fsync(handle.fileno())


def make_directory(path: Path | str) -> None:
    """Create a directory and its missing parents, each under a durable name; one that is there already is left alone.

    Raises:
        StorageError: the disk refused.
    """
    path = Path(path)
    with explained("create", path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            fault("directory.make")
            folder.mkdir(exist_ok=True)
            fsync_directory(folder.parent)


@contextmanager
def staged(target: Path | str, *, replace: bool = False) -> Generator[Path, None, None]:
    """Yield a staging directory that becomes the target, with a manifest, when the block ends without an error.

    Raises:
        RunExistsError: the target exists and replace is False.
        StorageError: the disk refused; the target is as it was before.
    """
    target = Path(target)
    if target.exists() and not replace:
        raise RunExistsError(f"{target} already exists; choose another name or allow it to be replaced")
    with explained("publish", target):
        make_directory(target.parent)
        staging = beside(target, "tmp")
        fault("publish.mkdir")
        staging.mkdir()
        try:
            yield staging
            _seal(staging)
            _rename_onto(staging, target, replace=replace)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def publish(target: Path | str, contents: Mapping[str, bytes | Callable[[], bytes]], *, replace: bool = False) -> None:
    """Publish a directory from names and bytes; a callable is asked for its bytes when its turn comes.

    Raises:
        ConfigError: a name leads out of the directory, or is the manifest's.
        RunExistsError: the target exists and replace is False.
        StorageError: the disk refused; the target is as it was before.
    """
    for name in contents:
        if not is_plain_name(name) or name == MANIFEST:
            raise ConfigError(f"{name!r} cannot be published in {target}: give a relative name other than {MANIFEST}")
    with staged(target, replace=replace) as staging:
        for name, data in contents.items():
            fault("publish.before_file")
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data() if callable(data) else data)


def verify(directory: Path | str) -> dict[str, dict[str, Any]]:
    """Check every file of a published directory against its manifest and return name -> {"bytes", "sha256"}.

    Raises:
        CheckpointError: the manifest or a file is missing, damaged or of another size; the message names it.
    """
    directory = Path(directory)
    files = read_manifest(directory)
    for name, facts in files.items():
        path = directory / name
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path} is missing (or no regular file); use an earlier checkpoint or a copy")
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes where its manifest says {facts['bytes']}; it is damaged")
        if sha256_file(path) != facts["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the manifest's; use an earlier checkpoint")
    return files


def read_manifest(directory: Path | str) -> dict[str, dict[str, Any]]:
    """Return the files that a published directory should hold, without reading them.

    Raises:
        CheckpointError: there is no manifest, or it is damaged in any byte.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise CheckpointError(f"{path} does not exist, so {directory} was never published whole; it cannot be used")
    try:
        manifest = read_json(path, what="manifest", limit=MAX_MANIFEST_BYTES)
        files = {str(name): dict(facts) for name, facts in manifest["files"].items()}
        intact = path.read_bytes() == _manifest_bytes(files)
        for name, facts in files.items():
            typed = isinstance(facts["bytes"], int) and isinstance(facts["sha256"], str)
            intact = intact and typed and is_plain_name(name)
    except (ArtefactError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); use an earlier checkpoint or a copy") from error
    if not intact:
        raise CheckpointError(f"{path} is damaged: its bytes are not those of a manifest of format {MANIFEST_FORMAT}")
    return files


def is_plain_name(name: str) -> bool:
    """Say whether a name from a file stays inside its directory: relative, no '..', no empty part."""
    parts = name.split("/")
    return bool(name) and not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts)


def remove_directory(path: Path | str) -> None:
    """Remove a directory so that a crash never leaves a part of it under its name: rename first, then delete."""
    path = Path(path)
    with explained("remove", path):
        doomed = beside(path, "tmp")
        fault("directory.rename")
        os.rename(path, doomed)
        fsync_directory(path.parent)
        fault("directory.remove")
        shutil.rmtree(doomed, ignore_errors=True)


def _seal(staging: Path) -> None:
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in staging.rglob("*") if p.is_file()):
        fault("publish.fsync_file")
        with open(path, "rb") as handle:
            fault("file.fsync")
            os.fsync(handle.fileno())
        files[path.relative_to(staging).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    fault("publish.before_manifest")
    write_bytes(staging / MANIFEST, _manifest_bytes(files))
    fault("publish.after_manifest")
    for folder in [p for p in staging.rglob("*") if p.is_dir()] + [staging]:
        fsync_directory(folder)


def _rename_onto(staging: Path, target: Path, *, replace: bool) -> None:
    aside: Path | None = None
    if replace and target.exists():
        aside = beside(target, "old")
        fault("publish.rename_old")
        os.rename(target, aside)
    try:
        fault("publish.rename")
        os.rename(staging, target)
    except BaseException:
        if aside is not None:
            with suppress(OSError):
                os.rename(aside, target)
        raise
    fault("publish.after_rename")
    fsync_directory(target.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _manifest_bytes(files: Mapping[str, Mapping[str, Any]]) -> bytes:
    content: dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "files": {name: {key: files[name][key] for key in sorted(files[name])} for name in sorted(files)},
    }
    # Its own hash, so that damage to the manifest is told from damage to a file that it vouches for.
    content["sha256"] = hashlib.sha256(dump_json(content)).hexdigest()
    return dump_json(content)
