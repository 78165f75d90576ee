"""Episodes of any format as a world model reads them, and the verb that says what they hold.

A world model reads pictures under `frames`, square and uint8. Other tools name them otherwise (`pixels`, a camera) and
keep them larger; both are put right here, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from forethought.app.arguments import parse, say, table
from forethought.app.world.pictures import write_gif
from forethought.core.errors import ConfigError, DataError
from forethought.data import Episodes, read_episodes
from forethought.envs.wrappers.adapt import resize
from forethought.world.config import WorldConfig
from forethought.world.data import action_statistics


@dataclass(frozen=True)
class InspectArguments:
    """Say what episodes hold, whether a world model can train on them, and show one as a GIF."""

    episodes: Annotated[Path, tyro.conf.Positional]
    """Episodes of any format that `forethought` reads: its own, .npz, HDF5, Minari, LeRobot."""
    camera: str | None = None
    """The array or LeRobot camera that holds the pictures; needed where there are several."""
    image_size: int | None = None
    """Scale the pictures to this side in pixels."""
    gif: Path | None = None
    """Write an episode as a GIF here."""
    episode: int = 0
    """Which episode the GIF shows."""
    json: bool = False
    """Print the result as one last line on standard output."""


def open_frames(path: Path, camera: str | None = None, image_size: int | None = None) -> Episodes:
    """Read episodes and put their pictures under `frames`, scaled to `image_size` where one is given.

    Raises:
        InputError: the episodes cannot be read, there is no such camera, or several and none is named.
    """
    lerobot = (path / "meta" / "info.json").is_file()
    episodes = read_episodes(path, cameras=(camera,) if camera and lerobot else ())
    name = _pictures(episodes, camera)
    frames = episodes.array(name)
    if image_size is not None and frames.shape[1:3] != (image_size, image_size):
        if not 16 <= image_size <= 1024:
            raise ConfigError(f"image_size is {image_size}; pictures of a world model have 16 to 1024 px")
        frames = np.stack([resize(np.asarray(frame), image_size) for frame in frames])
    if name == "frames" and frames is episodes.array(name):
        return episodes
    arrays = {key: value for key, value in episodes.arrays.items() if key != name}
    finals = {key: value for key, value in episodes.finals.items() if key != name}
    return Episodes(
        {**arrays, "frames": frames},
        starts=episodes.starts,
        lengths=episodes.lengths,
        terminated=episodes.terminated,
        truncated=episodes.truncated,
        finals=finals,
        fps=episodes.fps,
        env_id=episodes.env_id,
        metadata=episodes.metadata,
        source=episodes.source,
    )


def inspect_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought world inspect` and return the facts.

    Raises:
        InputError: a flag or the episodes cannot be used.
    """
    given = parse(InspectArguments, arguments, verb="world inspect")
    episodes = open_frames(given.episodes, given.camera, given.image_size)
    result = {"kind": "world.inspect", **facts_of(episodes)}
    if given.gif is not None:
        if not 0 <= given.episode < episodes.num_episodes:
            raise ConfigError(f"episode {given.episode} was asked for; there are 0 to {episodes.num_episodes - 1}")
        write_gif(given.gif, episodes.episode(given.episode)["frames"])
        result["gif"] = str(given.gif)
    say(f"{given.episodes}:\n{table(_rows(result))}", as_json=given.json)
    return result


def facts_of(episodes: Episodes) -> dict[str, Any]:
    """Return what a reader wants to know before training, as plain JSON values.

    Raises:
        DataError: an action inside an episode is not finite.
    """
    statistics, frames = action_statistics(episodes), episodes.array("frames")
    shape = WorldConfig()
    span = shape.frame_skip * shape.history
    some = np.asarray(frames[:: max(1, len(frames) // 512)], np.float64)
    same = (frames[1:] == frames[:-1]).reshape(len(frames) - 1, -1).all(axis=1) if len(frames) > 1 else np.zeros(1)
    return {
        "episodes": episodes.num_episodes,
        "steps": episodes.num_steps,
        "lengths": [int(f(episodes.lengths)) for f in (np.min, np.median, np.max)],
        "arrays": {name: f"{value.dtype} {list(value.shape[1:])}" for name, value in episodes.arrays.items()},
        "environment": episodes.env_id,
        "frames_per_second": episodes.fps,
        "windows": int(np.maximum(episodes.lengths - span, 0).sum()),
        "window_steps": span + 1,
        "still_frames": float(same.mean()),
        "brightness": [float(some.mean()), float(some.std())],
        "nan_action_rows": statistics.num_nan_rows,
        "actions": {name: getattr(statistics, name).tolist() for name in ("mean", "std", "low", "high")},
        "readable": _readable(frames),
    }


def _readable(frames: Any) -> str | None:
    """Return why a world model cannot read frames, or None."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        return f"frames are {frames.dtype} {list(frames.shape[1:])}; a world model reads uint8 [side, side, 3]"
    if frames.shape[1] != frames.shape[2]:
        return f"frames are {frames.shape[1]} x {frames.shape[2]}; give --image-size to scale them to a square"
    return None


def _rows(result: dict[str, Any]) -> dict[str, object]:
    low, middle, high = result["lengths"]
    actions = result["actions"]
    rows: dict[str, object] = {
        "episodes": f"{result['episodes']:,} of {low} to {high} steps (median {middle}), {result['steps']:,} steps",
        "from": f"{result['environment'] or 'an unnamed environment'}, "
        f"{result['frames_per_second'] or 'unknown'} frames a second",
        **result["arrays"],
        "still frames": f"{result['still_frames']:.1%} are the same as the one before",
        "windows": f"{result['windows']:,} of {result['window_steps']} steps to train on",
        "NaN actions": f"{result['nan_action_rows']} first or last rows, read as the mean",
    }
    rows |= {f"actions {name}": ", ".join(f"{value:.3g}" for value in actions[name]) for name in actions}
    if result["readable"]:
        rows["NOT READABLE"] = result["readable"]
    return rows


def _pictures(episodes: Episodes, camera: str | None) -> str:
    names = [name for name, value in episodes.arrays.items() if value.ndim == 4 and value.dtype == np.uint8]
    if camera is not None:
        wanted = [name for name in episodes.arrays if name in (camera, camera.replace(".", "_"))]
        if not wanted:
            raise DataError(f"{episodes.source} holds no {camera!r}; pictures are under: {', '.join(names) or 'none'}")
        return wanted[0]
    if "frames" in episodes.arrays or not names:
        # Where there is none, the message of the missing array says what is wanted.
        episodes.array("frames")
        return "frames"
    if len(names) > 1:
        raise DataError(f"{episodes.source} holds pictures under {', '.join(names)}; say which with --camera")
    return names[0]
