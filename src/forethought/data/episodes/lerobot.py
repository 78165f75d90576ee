"""Episodes from a LeRobot data set (v2 and v3): Parquet with one row a frame, images as PNG or JPEG inside.

    meta/info.json      fps, features (name -> type and shape), totals
    data/**/*.parquet   observation.state, action, episode_index, frame_index, timestamp [, next.reward, next.success]

A frame's row holds what was seen and the action taken on it. Demonstrations end without a verdict: an episode counts as
terminated where the source says next.success, else as truncated. Videos (MP4) are not decoded.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forethought.core import files
from forethought.core.errors import DataError, nearest
from forethought.core.extras import require
from forethought.data.episodes.table import Array, Episodes, starts_of

_STATE, _ACTION = "observation.state", "action"
_INDEX = ("episode_index", "frame_index", "timestamp")
_RENAMED = {_STATE: "observations", _ACTION: "actions", "next.reward": "rewards"}
_SKIPPED = {*_INDEX, "index", "task_index", "next.done", "next.success"}
_MAX_PIXELS = 1 << 26


def read_lerobot(directory: Path | str, *, cameras: Sequence[str] = ()) -> Episodes:
    """Read a LeRobot data set; `cameras` names the image features to decode as uint8 [N, H, W, 3].

    Features keep their names with dots turned into underscores; observation.state, action and next.reward become
    observations, actions and rewards.

    Raises:
        MissingExtraError: pyarrow, or pillow for images, is not installed.
        DataError: a file or a column is missing, cut or of another shape, frames are missing, frame rates are mixed,
            a camera is unknown or stored as video, or a number is not finite.
        ArtefactError: meta/info.json is missing or malformed.
    """
    directory = Path(directory)
    info = files.read_json(directory / "meta" / "info.json", what="LeRobot description", limit=16 << 20)
    features = info.get("features")
    fps = info.get("fps")
    if not isinstance(features, dict) or not isinstance(fps, int | float) or fps <= 0:
        raise DataError(
            f"{directory / 'meta' / 'info.json'} lacks features or fps; give a LeRobot data set of v2 or v3"
        )
    names = _columns(features, cameras, directory)
    table = _read_table(directory, names)
    order = np.lexsort((table["frame_index"], table["episode_index"]))
    table = {name: value[order] for name, value in table.items()}
    lengths = _lengths(table, float(fps), info, directory)
    last = np.cumsum(lengths) - 1
    success = table.get("next.success")
    terminated = np.zeros(len(lengths), bool) if success is None else success.reshape(-1)[last].astype(bool)
    arrays = {
        _RENAMED.get(name, re.sub(r"[^A-Za-z0-9_]", "_", name)): value
        for name, value in table.items()
        if name not in _SKIPPED
    }
    if "rewards" in arrays:
        arrays["rewards"] = arrays["rewards"].reshape(len(arrays["rewards"]))
    episodes = Episodes(
        arrays,
        starts=starts_of(lengths),
        lengths=lengths,
        terminated=terminated,
        truncated=~terminated,
        fps=float(fps),
        env_id=info.get("env_id") if isinstance(info.get("env_id"), str) else None,
        metadata={name: info.get(name) for name in ("codebase_version", "robot_type")},
        source=str(directory),
    )
    episodes.require_finite()
    return episodes


def _columns(
    features: Mapping[str, Any], cameras: Sequence[str], directory: Path
) -> dict[str, tuple[str, tuple[int, ...]]]:
    kinds = {str(name): str(dict(facts).get("dtype")) for name, facts in features.items()}
    images = sorted(name for name, kind in kinds.items() if kind in ("image", "video"))
    for camera in cameras:
        if camera not in images:
            known = ", ".join(images) or "none"
            raise DataError(f"{directory} has no camera {camera!r}; it has: {known}.{nearest(camera, images)}")
        if kinds[camera] == "video":
            raise DataError(
                f"{directory} stores the camera {camera!r} as MP4, which is not decoded here; convert the data set to "
                "images, or leave the camera out"
            )
    if _ACTION not in kinds:
        raise DataError(f"{directory} has no feature {_ACTION!r}; it has: {', '.join(sorted(kinds))}")
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, facts in features.items():
        kind = kinds[name]
        numeric = kind.startswith(("float", "int", "uint", "bool"))
        if numeric or name in cameras:
            shape = tuple(int(size) for size in dict(facts).get("shape", (1,)))
            wanted[name] = (kind, shape)
    for name in _INDEX:
        wanted.setdefault(name, ("float32" if name == "timestamp" else "int64", (1,)))
    return wanted


def _read_table(directory: Path, wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Array]:
    parquet = require("pyarrow.parquet", extra="data", purpose="reading LeRobot data sets")
    arrow = require("pyarrow", extra="data", purpose="reading LeRobot data sets")
    paths = sorted((directory / "data").rglob("*.parquet"))
    if not paths:
        raise DataError(f"{directory / 'data'} holds no Parquet files; copy the data set again")
    parts: dict[str, list[Array]] = {name: [] for name in wanted}
    for path in paths:
        try:
            file = parquet.ParquetFile(path)
            missing = sorted(set(wanted) - set(file.schema_arrow.names))
            if missing:
                raise DataError(
                    f"{path} lacks the columns {', '.join(missing)} that meta/info.json names; copy it again"
                )
            table = file.read(columns=list(wanted))
        except (OSError, arrow.ArrowException) as error:
            raise DataError(f"{path} cannot be read as Parquet ({error}); it is cut, copy it again") from error
        for name, (kind, shape) in wanted.items():
            column = table.column(name).combine_chunks()
            parts[name].append(_array(column, name, kind, shape, path))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _array(column: Any, name: str, kind: str, shape: tuple[int, ...], path: Path) -> Array:
    if column.null_count:
        raise DataError(f"{path}: the column {name} has {column.null_count} empty entries; remove those frames")
    if kind == "image":
        return np.stack([_decoded(entry, name, path) for entry in column.to_pylist()])
    rows = len(column)
    flat = column
    while hasattr(flat, "flatten") and str(flat.type).startswith(("list", "fixed_size_list", "large_list")):
        flat = flat.flatten()
    try:
        values = np.asarray(flat.to_numpy(zero_copy_only=False)).astype(kind)
        size = () if shape in ((1,), ()) and len(values) == rows and flat is column else shape
        return values.reshape(rows, *size)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: the column {name} does not hold {kind} of shape {shape} a frame ({error})") from error


def _decoded(entry: Any, name: str, path: Path) -> Array:
    image = require("PIL.Image", extra="world", purpose="reading images")
    data = entry.get("bytes") if isinstance(entry, dict) else None
    if not data:
        raise DataError(f"{path}: the image column {name} holds no bytes, only a path; embed the images in the Parquet")
    try:
        with image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > _MAX_PIXELS:
                raise DataError(f"{path}: an image of {name} has {picture.width} x {picture.height} pixels; resize it")
            return np.asarray(picture.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: an image of {name} cannot be decoded ({error}); PNG and JPEG are read") from error


def _lengths(table: Mapping[str, Array], fps: float, info: Mapping[str, Any], directory: Path) -> Array:
    episode, frame, time = (table[name].reshape(-1) for name in _INDEX)
    numbers, begins, lengths = np.unique(episode, return_index=True, return_counts=True)
    expected = np.arange(len(episode)) - np.repeat(begins, lengths)
    wrong = np.flatnonzero(frame != expected)
    if len(wrong):
        raise DataError(
            f"{directory}: episode {int(episode[wrong[0]])} has frame {int(frame[wrong[0]])} where "
            f"{int(expected[wrong[0]])} is due; frames are missing or doubled, copy the data set again"
        )
    for what, have in (("total_frames", len(episode)), ("total_episodes", len(numbers))):
        if isinstance(info.get(what), int) and info[what] != have:
            raise DataError(f"{directory} holds {have} where meta/info.json says {what} {info[what]}; copy it again")
    # The mean step of an episode against 1 / fps: a hundredth off is another frame rate, less is rounding.
    spans = time[begins + lengths - 1].astype(np.float64) - time[begins].astype(np.float64)
    odd = np.flatnonzero((lengths > 1) & (np.abs(spans * fps / np.maximum(lengths - 1, 1) - 1.0) > 0.01))
    if len(odd):
        rate = (lengths[odd[0]] - 1) / max(spans[odd[0]], 1e-9)
        raise DataError(
            f"{directory}: episode {int(numbers[odd[0]])} runs at {rate:.4g} frames a second and the data set at "
            f"{fps:.4g}; frame rates cannot be mixed, resample or leave the episode out"
        )
    return lengths.astype(np.int64)
