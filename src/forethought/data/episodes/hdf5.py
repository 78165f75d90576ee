"""Episodes from HDF5: the flat layout of D4RL, and the episode groups of Minari, which are also written.

D4RL     /observations, /actions, /rewards, /terminals, /timeouts [, /next_observations], one row a step
Minari   /episode_I/{observations (L + 1 rows), actions, rewards, terminations, truncations} and metadata.json beside;
         observations may be a group of several (a Dict space), which are kept apart and joined into one vector
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from forethought.core import files
from forethought.core.errors import DataError
from forethought.core.extras import require
from forethought.data.episodes.flat import episodes_from_flat
from forethought.data.episodes.table import Array, Episodes, starts_of

MINARI_FILE = "main_data.hdf5"
MINARI_FACTS = "metadata.json"
_PURPOSE = "reading and writing HDF5"
_EPISODE = re.compile(r"episode_(\d{1,9})")
_FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")


def read_hdf5(path: Path | str, *, max_steps: int | None = None) -> Episodes:
    """Read a D4RL or a Minari file, told apart by what is in it; `max_steps` as in episodes_from_flat.

    Raises:
        MissingExtraError: h5py is not installed.
        DataError: the file is missing, cut, links elsewhere or has another layout, or holds NaN.
    """
    path = Path(path)
    with _opened(path) as file:
        minari = any(_EPISODE.fullmatch(name) for name in file)
        if minari:
            return _read_minari(file, path)
        arrays = {name: _dataset(file, name, path) for name in sorted(file) if _is_dataset(file, name, path)}
    return episodes_from_flat(arrays, max_steps=max_steps, source=str(path))


def read_minari(directory: Path | str) -> Episodes:
    """Read a Minari data set: its directory, the `data` folder in it, or the HDF5 file itself.

    Raises:
        MissingExtraError: h5py is not installed.
        DataError: there is no such file, or it is cut or malformed.
    """
    directory = Path(directory)
    places = (directory, directory / MINARI_FILE, directory / "data" / MINARI_FILE)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(f"{directory} holds no {MINARI_FILE}, nor data/{MINARI_FILE}; give a Minari data set in HDF5")
    with _opened(found) as file:
        return _read_minari(file, found)


def write_minari(
    episodes: Episodes, directory: Path | str, *, dataset_id: str, facts: Mapping[str, Any] | None = None
) -> Path:
    """Write episodes as a Minari data set (DIRECTORY/data/main_data.hdf5 and metadata.json); return the directory.

    Where the source did not know the last observation of an episode, the one before it stands in, as Minari needs one
    more than actions. `facts` goes into metadata.json: Minari itself needs `observation_space` and `action_space`, or
    `env_spec`, as it serialises them, to open the set.

    Raises:
        MissingExtraError: h5py is not installed.
        RunExistsError: the directory exists.
        StorageError: the disk refused.
    """
    h5py = require("h5py", extra="control", purpose=_PURPOSE)
    directory = Path(directory)
    with files.staged(directory) as staging:
        data = staging / "data"
        data.mkdir()
        with files.explained("write", data / MINARI_FILE), h5py.File(data / MINARI_FILE, "w") as file:
            for index in range(episodes.num_episodes):
                _write_episode(file.create_group(f"episode_{index}"), episodes, index)
        metadata = {
            "total_episodes": episodes.num_episodes,
            "total_steps": episodes.num_steps,
            "data_format": "hdf5",
            "dataset_id": dataset_id,
            **({} if episodes.env_id is None else {"env_id": episodes.env_id}),
            **dict(facts or {}),
        }
        files.write_bytes(data / MINARI_FACTS, files.dump_json(metadata))
    return directory


def _write_episode(group: Any, episodes: Episodes, index: int) -> None:
    rows = episodes.episode(index)
    final = episodes.finals.get("observations")
    last = rows["observations"][-1] if final is None else final[index]
    length = int(episodes.lengths[index])
    ends = {"terminations": episodes.terminated[index], "truncations": episodes.truncated[index]}
    group.attrs["id"], group.attrs["total_steps"] = index, length
    group.create_dataset("observations", data=np.concatenate((rows["observations"], np.asarray(last)[None])))
    group.create_dataset("actions", data=rows["actions"])
    group.create_dataset("rewards", data=np.asarray(rows["rewards"], dtype=np.float64))
    for name, value in ends.items():
        flags = np.zeros(length, dtype=bool)
        flags[-1] = bool(value)
        group.create_dataset(name, data=flags)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = require("h5py", extra="control", purpose=_PURPOSE)
    if not path.is_file():
        raise DataError(f"{path} does not exist, or is no regular file; give an HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as HDF5 ({error}); it is cut or of another format, copy it again"
        ) from error


def _is_dataset(group: Any, name: str, path: Path) -> bool:
    """Say whether a name is a data set; a link, which could lead to any file, is refused unopened."""
    link = group.get(name, getlink=True)
    if type(link).__name__ != "HardLink":
        raise DataError(f"{path}: {group.name.rstrip('/')}/{name} is a link; data has to lie in the file itself")
    item = group.get(name)
    if not hasattr(item, "dtype"):
        return False
    if item.external or item.is_virtual:
        raise DataError(f"{path}: {item.name} keeps its data in other files; copy the data into one file")
    return True


def _dataset(group: Any, name: str, path: Path) -> Array:
    if name not in group or not _is_dataset(group, name, path):
        known = ", ".join(sorted(group)) or "nothing"
        raise DataError(f"{path}: {group.name} lacks the array {name!r}; it has: {known}")
    value = group[name][()]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise DataError(f"{path}: {group.name}/{name} is no array of numbers; remove it or convert the data")
    return value


def _read_minari(file: Any, path: Path) -> Episodes:
    numbers = sorted(int(match[1]) for match in map(_EPISODE.fullmatch, file) if match)
    if numbers != list(range(len(numbers))):
        raise DataError(
            f"{path} has {len(numbers)} episodes numbered up to {numbers[-1]}: some are missing; copy it again"
        )
    facts = _facts(path)
    expected = facts.get("total_episodes")
    if isinstance(expected, int) and expected != len(numbers):
        raise DataError(f"{path} has {len(numbers)} episodes where {MINARI_FACTS} says {expected}; copy it again")
    parts = [_read_episode(file[f"episode_{number}"], path) for number in numbers]
    names = parts[0].steps.keys()
    for number, part in enumerate(parts):
        if part.steps.keys() != names:
            raise DataError(f"{path}: episode_{number} has arrays {sorted(part.steps)}, episode_0 {sorted(names)}")
    lengths = np.array([part.length for part in parts])
    try:
        joined = {name: np.concatenate([part.steps[name] for part in parts]) for name in names}
        finals = {name: np.stack([part.finals[name] for part in parts]) for name in parts[0].finals}
    except ValueError as error:
        raise DataError(
            f"{path}: episodes differ in the shape of their arrays ({error}); split the data set"
        ) from error
    episodes = Episodes(
        joined,
        starts=starts_of(lengths),
        lengths=lengths,
        terminated=[part.terminated for part in parts],
        truncated=[part.truncated for part in parts],
        finals=finals,
        env_id=_env_id(facts),
        metadata={name: value for name, value in facts.items() if isinstance(value, str | int | float | None)},
        source=str(path),
    )
    episodes.require_finite()
    return episodes


class _Part:
    """One episode as read."""

    def __init__(self, steps: dict[str, Array], finals: dict[str, Array], terminated: bool, truncated: bool) -> None:
        self.steps, self.finals, self.terminated, self.truncated = steps, finals, terminated, truncated
        self.length = len(steps["actions"])


def _read_episode(group: Any, path: Path) -> _Part:
    where = f"{path}: {group.name}"
    missing = [name for name in _FIELDS if name not in group]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; it is cut or not of Minari")
    actions, rewards = _dataset(group, "actions", path), _dataset(group, "rewards", path)
    flags = {name: _dataset(group, name, path).astype(bool) for name in ("terminations", "truncations")}
    seen = _observations(group, path)
    length = len(actions)
    counts = {"rewards": len(rewards)} | {name: len(value) for name, value in flags.items()}
    wrong = [f"{name} {number}" for name, number in counts.items() if number != length]
    wrong += [f"{name} {len(value)}" for name, value in seen.items() if len(value) not in (length, length + 1)]
    if wrong or not length:
        raise DataError(f"{where} has {length} actions but {', '.join(wrong) or 'no steps'}; the episode is cut")
    for name, value in flags.items():
        if value[:-1].any():
            raise DataError(
                f"{where}: {name} is set at step {int(value.argmax())} of {length}, before the end; split it"
            )
    finals = {name: value[length] for name, value in seen.items() if len(value) == length + 1}
    steps = {name: value[:length] for name, value in seen.items()} | {"actions": actions, "rewards": rewards}
    return _Part(steps, finals, bool(flags["terminations"][-1]), bool(flags["truncations"][-1]))


def _observations(group: Any, path: Path) -> dict[str, Array]:
    if _is_dataset(group, "observations", path):
        return {"observations": _dataset(group, "observations", path)}
    inner = group["observations"]
    parts = {name: _dataset(inner, name, path) for name in sorted(inner)}
    if not parts or len({len(value) for value in parts.values()}) != 1:
        raise DataError(f"{path}: {inner.name} holds observations of different lengths, or none; the episode is cut")
    flat = [value.reshape(len(value), -1).astype(np.float32) for value in parts.values()]
    named = {f"observation_{re.sub('[^A-Za-z0-9_]', '_', name)}": value for name, value in parts.items()}
    return {"observations": np.concatenate(flat, axis=1), **named}


def _facts(path: Path) -> dict[str, Any]:
    beside = path.parent / MINARI_FACTS
    return files.read_json(beside, what="metadata of Minari", limit=4 << 20) if beside.is_file() else {}


def _env_id(facts: Mapping[str, Any]) -> str | None:
    spec = facts.get("env_spec")
    try:
        found = json.loads(spec).get("id") if isinstance(spec, str) else facts.get("env_id")
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None
