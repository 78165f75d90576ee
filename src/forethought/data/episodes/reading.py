"""One function for all formats of episodes, chosen by what stands at the path."""

from __future__ import annotations

from pathlib import Path

from forethought.core.artefact import ARTEFACT, read_kind
from forethought.core.errors import DataError
from forethought.data.episodes.hdf5 import MINARI_FILE, read_hdf5, read_minari
from forethought.data.episodes.lerobot import read_lerobot
from forethought.data.episodes.npz import read_npz
from forethought.data.episodes.storage import KIND, open_episodes
from forethought.data.episodes.table import Episodes

FORMATS = "an .npz, an .hdf5 of D4RL or Minari, a Minari or LeRobot directory, or a directory of episodes"


def read_episodes(path: Path | str, *, max_steps: int | None = None, cameras: tuple[str, ...] = ()) -> Episodes:
    """Read episodes of any format; `max_steps` is for D4RL files without timeouts, `cameras` for LeRobot.

    Raises:
        MissingExtraError: the package of the format is not installed.
        DataError: the path is of no known format, or its reader refuses it.
        ArtefactError: the directory is an artefact of another kind, or malformed.
    """
    path = Path(path)
    if path.is_dir():
        return _read_directory(path, cameras)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return read_npz(path, max_steps=max_steps)
    if suffix in (".hdf5", ".h5"):
        return read_hdf5(path, max_steps=max_steps)
    state = "is of an unknown format" if path.exists() else "does not exist"
    raise DataError(f"{path} {state}; give {FORMATS}")


def _read_directory(path: Path, cameras: tuple[str, ...]) -> Episodes:
    if (path / ARTEFACT).is_file():
        kind = read_kind(path)
        if kind != KIND:
            raise DataError(f"{path} is a {kind}, not episodes; give {FORMATS}")
        return open_episodes(path)
    if (path / "meta" / "info.json").is_file():
        return read_lerobot(path, cameras=cameras)
    if (path / MINARI_FILE).is_file() or (path / "data" / MINARI_FILE).is_file():
        return read_minari(path)
    raise DataError(f"{path} holds no episodes that can be read; give {FORMATS}")
