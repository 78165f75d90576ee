"""Flat arrays as D4RL keeps them (observations, actions, rewards, terminals, timeouts), made into episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import DataError
from forethought.data.episodes.checks import check_name
from forethought.data.episodes.table import Array, Episodes, starts_of

REQUIRED = ("observations", "actions", "rewards", "terminals")
_FLAGS = ("terminals", "timeouts")
_KNOWN = (*REQUIRED, "timeouts", "next_observations")


def episodes_from_flat(
    arrays: Mapping[str, Array],
    *,
    max_steps: int | None = None,
    env_id: str | None = None,
    fps: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    source: str = "the given arrays",
) -> Episodes:
    """Cut flat arrays into episodes at `terminals` and `timeouts`.

    `terminals` ends an episode for good, `timeouts` by a time limit; where both stand it was terminated. Without
    `timeouts` (D4RL v0), `max_steps` gives the time limit. Steps after the last end form an episode with neither flag.
    `next_observations` gives the observation after each episode's last action.

    Raises:
        DataError: an array is missing, has the wrong shape or type or NaN, or the boundaries cannot be known.
    """
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise DataError(
            f"{source} lacks {', '.join(missing)}; it has: {', '.join(sorted(arrays)) or 'nothing'}. "
            f"Needed: {', '.join(REQUIRED)}, and timeouts or a time limit"
        )
    count = _count(arrays, source)
    terminals = _flags(arrays["terminals"], "terminals", count, source)
    timeouts = _timeouts(arrays, terminals, max_steps, source)
    ends = np.flatnonzero(terminals | timeouts) + 1
    metadata = dict(metadata or {})
    if not len(ends) or ends[-1] != count:
        metadata["cut_last_episode"] = True
        ends = np.append(ends, count)
    lengths = np.diff(ends, prepend=0)
    steps = {name: value for name, value in arrays.items() if name not in _FLAGS and name != "next_observations"}
    last = ends - 1
    following = arrays.get("next_observations")
    episodes = Episodes(
        {check_name(name): value for name, value in steps.items()},
        starts=starts_of(lengths),
        lengths=lengths,
        terminated=terminals[last],
        truncated=timeouts[last] & ~terminals[last],
        finals=None if following is None else {"observations": np.asarray(following)[last]},
        env_id=env_id,
        fps=fps,
        metadata=metadata,
        source=source,
    )
    episodes.require_finite()
    return episodes


def _count(arrays: Mapping[str, Array], source: str) -> int:
    counts = {name: len(value) if value.ndim else 0 for name, value in arrays.items()}
    most = max(counts.values())
    if len(set(counts.values())) > 1 or not most:
        told = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
        raise DataError(f"{source}: the arrays differ in length or are empty (rows: {told}); the file is cut or mixed")
    for name, rank in (("observations", 2), ("rewards", 1), ("actions", 1)):
        value = arrays[name]
        if value.ndim < rank or (name == "rewards" and value.ndim != 1):
            raise DataError(
                f"{source}: {name} has shape {value.shape}; a row a step is expected, rewards of shape (N,)"
            )
    following = arrays.get("next_observations")
    if following is not None and following.shape != arrays["observations"].shape:
        raise DataError(f"{source}: next_observations {following.shape} do not match {arrays['observations'].shape}")
    return most


def _flags(value: Array, name: str, count: int, source: str) -> NDArray[np.bool_]:
    flat = np.asarray(value)
    if flat.shape not in ((count,), (count, 1)) or flat.dtype.kind not in "biuf" or not np.isin(flat, (0, 1)).all():
        raise DataError(f"{source}: {name} must hold {count} flags of 0 or 1; got shape {flat.shape}, {flat.dtype}")
    return flat.reshape(count).astype(bool)


def _timeouts(
    arrays: Mapping[str, Array], terminals: NDArray[np.bool_], max_steps: int | None, source: str
) -> NDArray[np.bool_]:
    if "timeouts" in arrays:
        return _flags(arrays["timeouts"], "timeouts", len(terminals), source)
    if max_steps is None or max_steps < 1:
        raise DataError(
            f"{source} has no timeouts, so episodes that a time limit ended would run into the next one; "
            "give max_steps, the time limit of its environment"
        )
    timeouts = np.zeros(len(terminals), dtype=bool)
    begin = 0
    for end in (*(np.flatnonzero(terminals) + 1).tolist(), len(terminals)):
        timeouts[begin + max_steps - 1 : end : max_steps] = True
        begin = end
    return timeouts
