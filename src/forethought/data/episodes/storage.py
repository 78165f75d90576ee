"""Episodes as a directory: raw arrays that are memory-mapped, one JSON of facts, and the manifest with their hashes.

episodes.json           format, names, types, shapes, environment, frame rate, metadata
steps/NAME.bin          N rows, little-endian, C order
finals/NAME.bin         E rows
episodes/{starts,lengths,terminated,truncated}.bin
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.core import files
from forethought.core.artefact import write_kind
from forethought.core.errors import ArtefactError, CheckpointError, DataError
from forethought.data.episodes.checks import check_name
from forethought.data.episodes.table import Episodes

KIND = "episodes"
FACTS = "episodes.json"
EPISODES_FORMAT = 1
_DTYPES = frozenset("bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split())
_GROUPS = ("steps", "finals", "episodes")
_MAX_FACTS = 16 << 20
_CHUNK = 16 << 20


def save_episodes(episodes: Episodes, directory: Path | str, *, replace: bool = False) -> Path:
    """Write episodes as an artefact directory that one rename publishes; return it.

    Raises:
        RunExistsError: the directory exists and replace is False.
        StorageError: the disk refused; what was there before is untouched.
    """
    directory = Path(directory)
    with files.staged(directory, replace=replace) as staging:
        write_arrays(staging, dict(episodes.tensors()))
        write_facts(staging, episodes)
    return directory


def write_arrays(staging: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays, named as `Episodes.tensors` names them, into a directory that is being staged."""
    for name, value in arrays.items():
        path = staging / f"{name}.bin"
        path.parent.mkdir(exist_ok=True)
        with files.open_write(path) as out:
            for part in _parts(value):
                out.write(np.ascontiguousarray(part, dtype=value.dtype.newbyteorder("<")).data.cast("B"))


def write_facts(staging: Path, episodes: Episodes) -> None:
    """Write the JSON beside the arrays of a directory that is being staged."""
    facts = {
        "format": EPISODES_FORMAT,
        "env_id": episodes.env_id,
        "fps": episodes.fps,
        "num_steps": episodes.num_steps,
        "num_episodes": episodes.num_episodes,
        "arrays": {name: [value.dtype.name, list(value.shape)] for name, value in episodes.tensors()},
        "metadata": episodes.metadata,
    }
    files.write_bytes(staging / FACTS, files.dump_json(facts))
    write_kind(
        staging,
        KIND,
        env_id=episodes.env_id,
        num_episodes=episodes.num_episodes,
        num_steps=episodes.num_steps,
        identity=episodes.identity(),
    )


def open_episodes(directory: Path | str, *, memory: bool = False, verify: bool = False) -> Episodes:
    """Open an artefact directory of episodes; arrays are memory-mapped read-only, or read whole with memory=True.

    Sizes are always checked against the facts; verify=True also reads every byte against its hash.

    Raises:
        ArtefactError: the directory is no artefact of episodes, or its facts are malformed.
        DataError: a file is missing, a link or cut, or the arrays do not fit one another.
        CheckpointError: the manifest is missing, or a file is not the one that was written (with verify).
    """
    directory = Path(directory)
    facts = files.read_json(directory / FACTS, what="description of episodes", limit=_MAX_FACTS, inside=True)
    manifest = files.verify(directory) if verify else files.read_manifest(directory)
    layout = _layout(facts, directory)
    found: dict[str, dict[str, NDArray[Any]]] = {group: {} for group in _GROUPS}
    for name, (dtype, shape) in layout.items():
        group, _, leaf = name.partition("/")
        # The small arrays are read, so that no later change of a file can move a boundary.
        found[group][leaf] = _read(directory / f"{name}.bin", dtype, shape, memory=memory or group == "episodes")
    try:
        episodes = Episodes(
            found["steps"],
            **found["episodes"],
            finals=found["finals"],
            env_id=facts.get("env_id"),
            fps=facts.get("fps"),
            metadata=facts.get("metadata"),
            source=str(directory),
        )
        episodes.remember({name: str(manifest[f"{name}.bin"]["sha256"]) for name in layout})
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise ArtefactError(f"{directory / FACTS} is malformed ({error}); collect or convert the data again") from error
    except KeyError as error:
        raise CheckpointError(f"{directory}: the manifest does not list {error}; convert the data again") from error
    return episodes


def _layout(facts: Mapping[str, Any], directory: Path) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    if facts.get("format") != EPISODES_FORMAT:
        raise ArtefactError(
            f"{directory / FACTS} has format {str(facts.get('format'))[:40]}; this version reads {EPISODES_FORMAT}"
        )
    layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    try:
        for name, (dtype, shape) in facts["arrays"].items():
            group, _, leaf = name.partition("/")
            sizes = tuple(int(size) for size in shape)
            if group not in _GROUPS or dtype not in _DTYPES or min(sizes, default=0) < 0 or len(sizes) > 8:
                raise ValueError(f"array {name!r} of type {dtype!r} and shape {shape}")
            layout[f"{group}/{check_name(leaf)}"] = (np.dtype(dtype).newbyteorder("<"), sizes)
        needed = {f"episodes/{name}" for name in ("starts", "lengths", "terminated", "truncated")}
        if needed != {name for name in layout if name.startswith("episodes/")}:
            raise ValueError(f"the arrays of episodes must be {', '.join(sorted(needed))}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"{directory / FACTS} is malformed ({error}); collect or convert the data again") from error
    return layout


def _read(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], *, memory: bool) -> NDArray[Any]:
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
        raise DataError(f"{path} is missing (or no regular file); convert or collect the data again")
    expected = dtype.itemsize * math.prod(shape)
    size = path.stat().st_size
    if size != expected:
        raise DataError(f"{path} has {size} bytes where its facts say {expected}; it is damaged, use another copy")
    if memory or not expected:
        return np.fromfile(path, dtype=dtype).reshape(shape)
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)


def _parts(value: NDArray[Any]) -> list[NDArray[Any]]:
    row = max(1, value.dtype.itemsize * math.prod(value.shape[1:]))
    rows = max(1, _CHUNK // row)
    return [value[begin : begin + rows] for begin in range(0, len(value), rows)]
