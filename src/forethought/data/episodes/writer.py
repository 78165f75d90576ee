"""Episodes as they happen: appended one by one, safe against a crash at any instant, resumed, then published whole.

Until `finish` the rows lie in DIRECTORY.part, raw arrays that only grow, and `journal.jsonl` with one line an episode,
written after its rows are on the disk. What a crash left behind the last whole line is cut off when the writer opens
again, so collecting goes on with the episode after the last one in the journal.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.core import files, records
from forethought.core.errors import ArtefactError, ConfigError, DataError, RunExistsError, StorageError, nearest
from forethought.data.episodes.checks import check_finite, check_name
from forethought.data.episodes.storage import open_episodes, write_arrays, write_facts
from forethought.data.episodes.table import Episodes, starts_of

HEADER = "header.json"
JOURNAL = "journal.jsonl"
_SYNC_STEPS = 4096

Array = NDArray[Any]


class EpisodeWriter:
    """Appends episodes to DIRECTORY.part and publishes them as DIRECTORY; a context manager that closes its files.

    A part that an earlier writer left is taken up again when `settings` (plain JSON: the environment, the policy, the
    seed) are the same. `num_episodes` says where to go on. The first episode fixes names, types and shapes.

    Raises:
        RunExistsError: the directory is there already.
        ConfigError: the part was begun with other settings.
        DataError: the part is damaged.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        settings: Mapping[str, Any] | None = None,
        env_id: str | None = None,
        fps: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.part = self.directory.with_name(self.directory.name + ".part")
        if self.directory.exists():
            raise RunExistsError(f"{self.directory} already exists; choose another name, or remove it first")
        self.env_id, self.fps, self.metadata = env_id, fps, dict(metadata or {})
        self._settings = dict(settings or {})
        self._layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._lines: list[dict[str, Any]] = []
        self._pending: list[dict[str, Any]] = []
        self._out: dict[str, BinaryIO] = {}
        self._broken = False
        if (self.part / HEADER).is_file():
            self._take_up()

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def num_episodes(self) -> int:
        """Episodes appended so far, those of earlier writers included."""
        return len(self._lines) + len(self._pending)

    @property
    def num_steps(self) -> int:
        """Steps appended so far."""
        return sum(line["length"] for line in (*self._lines, *self._pending))

    def append(
        self,
        arrays: Mapping[str, ArrayLike],
        *,
        terminated: bool,
        truncated: bool,
        finals: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        """Append one episode: arrays of L rows each, and the values after its last action.

        Raises:
            DataError: rows, names, types or shapes differ from each other or from the first episode, or are not finite.
            StorageError: the disk refused; what is in the journal stays whole.
        """
        episode = self._encoded(arrays, finals or {})
        if not self._layout:
            self._begin(episode)
        self._check(episode)
        self._refuse_if_broken()
        length = len(next(value for name, value in episode.items() if name.startswith("steps/")))
        self._broken = True
        with files.explained("append to", self.part):
            for name, value in episode.items():
                self._file(name).write(value.data.cast("B"))
        self._broken = False
        self._pending.append({"length": length, "terminated": bool(terminated), "truncated": bool(truncated)})
        if sum(line["length"] for line in self._pending) >= _SYNC_STEPS:
            self.flush()

    def flush(self) -> None:
        """Make every appended episode durable.

        Raises:
            StorageError: the disk refused.
        """
        if not self._pending:
            return
        self._refuse_if_broken()
        # Broken until it succeeds: the line may be in the journal already, and written twice it would be two episodes.
        self._broken = True
        with files.explained("write", self.part):
            for out in self._out.values():
                files.fsync_file(out)
            with files.open_write(self.part / JOURNAL, append=True) as journal:
                journal.write(b"".join(records.encode(line, JOURNAL) for line in self._pending))
                files.fsync_file(journal)
        self._broken = False
        self._lines += self._pending
        self._pending = []

    def close(self) -> None:
        """Make everything durable and close the files; the part stays, to be taken up again."""
        try:
            if not self._broken:
                self.flush()
        finally:
            for out in self._out.values():
                # A half-written episode is cut off when the part is taken up again.
                with suppress(OSError) if self._broken else nullcontext():
                    out.close()
            self._out = {}

    def finish(self) -> Episodes:
        """Publish the directory, remove the part and return the episodes, opened.

        Raises:
            DataError: nothing was appended.
            StorageError: the disk refused; the part stays.
        """
        self._refuse_if_broken()
        if not self.num_episodes:
            raise DataError(f"no episode was appended to {self.directory}; append at least one before finish")
        self.close()
        episodes = self._assembled()
        with files.staged(self.directory) as staging:
            for name in self._layout:
                target = staging / f"{name}.bin"
                target.parent.mkdir(exist_ok=True)
                _link_or_copy(self.part / f"{name}.bin", target)
            write_arrays(staging, {name: v for name, v in episodes.tensors() if name.startswith("episodes/")})
            write_facts(staging, episodes)
        files.remove_directory(self.part)
        return open_episodes(self.directory)

    def _refuse_if_broken(self) -> None:
        if self._broken:
            raise StorageError(f"an earlier write to {self.part} failed half-way; open the writer again to go on")

    def _encoded(self, arrays: Mapping[str, ArrayLike], finals: Mapping[str, ArrayLike]) -> dict[str, Array]:
        source = f"episode {self.num_episodes} of {self.directory}"
        values = {f"steps/{check_name(name)}": _plain(value) for name, value in arrays.items()}
        values |= {f"finals/{check_name(name)}": _plain(value)[None] for name, value in finals.items()}
        rows = {
            name: value.shape[0] if value.ndim else 0 for name, value in values.items() if name.startswith("steps/")
        }
        if not rows or len(set(rows.values())) != 1 or not min(rows.values()):
            told = ", ".join(f"{name.partition('/')[2]} {number}" for name, number in rows.items())
            raise DataError(f"{source}: give arrays of one length of at least 1; got rows {told or 'of no array'}")
        for name, value in values.items():
            if value.dtype.kind not in "biuf":
                raise DataError(f"{source}: {name.partition('/')[2]} has type {value.dtype}; give numbers")
            check_finite(name.partition("/")[2], value, np.zeros(1, np.int64), source=source)
        return {name: np.ascontiguousarray(value) for name, value in values.items()}

    def _begin(self, episode: Mapping[str, Array]) -> None:
        files.make_directory(self.part)
        self._layout = {name: (value.dtype, value.shape[1:]) for name, value in episode.items()}
        header = {
            "settings": self._settings,
            "arrays": {name: [dtype.name, list(shape)] for name, (dtype, shape) in self._layout.items()},
        }
        for name in self._layout:
            files.make_directory((self.part / name).parent)
            files.write_bytes(self.part / f"{name}.bin", b"")
        files.write_bytes(self.part / JOURNAL, b"")
        files.write_json(self.part / HEADER, header)

    def _check(self, episode: Mapping[str, Array]) -> None:
        for name in sorted(self._layout.keys() | episode.keys()):
            if name not in episode or name not in self._layout:
                what = "lacks" if name in self._layout else "has"
                known = [each.partition("/")[2] for each in self._layout]
                hint = nearest(name.partition("/")[2], known)
                raise DataError(f"episode {self.num_episodes} {what} {name!r}, unlike the first one.{hint}")
            given = (episode[name].dtype, episode[name].shape[1:])
            if given != self._layout[name]:
                raise DataError(
                    f"episode {self.num_episodes}: {name.partition('/')[2]} is {given[0]} {given[1]} where the first "
                    f"episode has {self._layout[name][0]} {self._layout[name][1]}; give every episode alike"
                )

    def _file(self, name: str) -> BinaryIO:
        if name not in self._out:
            self._out[name] = files.open_write(self.part / f"{name}.bin", append=True)
        return self._out[name]

    def _take_up(self) -> None:
        header = files.read_json(self.part / HEADER, what="header of a part")
        if header.get("settings") != self._settings:
            raise ConfigError(
                f"{self.part} was begun with settings {header.get('settings')} and is now asked for {self._settings}; "
                "give the same settings, another name, or remove the part"
            )
        try:
            for name, (dtype, shape) in header["arrays"].items():
                group, _, leaf = name.partition("/")
                if group not in ("steps", "finals"):
                    raise ValueError(f"array {name!r}")
                self._layout[f"{group}/{check_name(leaf)}"] = (np.dtype(str(dtype)), tuple(int(size) for size in shape))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(f"{self.part / HEADER} is malformed ({error}); remove the part") from error
        records.cut_torn(self.part / JOURNAL)
        self._lines = records.read_records(self.part / JOURNAL)
        for name in self._layout:
            path, wanted = self.part / f"{name}.bin", self._rows(name) * self._row_bytes(name)
            size = path.stat().st_size if path.is_file() else -1
            if size < wanted:
                raise DataError(
                    f"{path} has {max(size, 0)} bytes where the journal says {wanted}; the part is damaged, remove it"
                )
            if size > wanted:
                records.cut(path, wanted)

    def _rows(self, name: str) -> int:
        return self.num_steps if name.startswith("steps/") else self.num_episodes

    def _row_bytes(self, name: str) -> int:
        dtype, shape = self._layout[name]
        return dtype.itemsize * int(np.prod(shape, dtype=np.int64))

    def _assembled(self) -> Episodes:
        lengths = np.array([line["length"] for line in self._lines], dtype=np.int64)
        parts: dict[str, dict[str, Array]] = {"steps": {}, "finals": {}}
        for name, (dtype, shape) in self._layout.items():
            group, _, leaf = name.partition("/")
            parts[group][leaf] = np.memmap(self.part / f"{name}.bin", dtype=dtype, mode="r").reshape(-1, *shape)
        return Episodes(
            parts["steps"],
            starts=starts_of(lengths),
            lengths=lengths,
            terminated=[line["terminated"] for line in self._lines],
            truncated=[line["truncated"] for line in self._lines],
            finals=parts["finals"],
            env_id=self.env_id,
            fps=self.fps,
            metadata={**self.metadata, "settings": self._settings},
            source=str(self.part),
        )


def _plain(value: ArrayLike) -> Array:
    array = np.asarray(value)
    # One byte order on every machine; a scalar final becomes an array of no axes.
    return array.astype(array.dtype.newbyteorder("<")) if array.dtype.kind in "biuf" else array


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        with open(source, "rb") as reading, files.open_write(target) as out:
            shutil.copyfileobj(reading, out, 1 << 20)
