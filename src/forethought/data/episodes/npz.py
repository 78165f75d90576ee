"""Episodes from an .npz of flat arrays, with the facts of a JSON file of the same name beside it."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forethought.core import files
from forethought.core.errors import DataError
from forethought.data.episodes.flat import episodes_from_flat
from forethought.data.episodes.table import Array, Episodes


def read_npz(path: Path | str, *, max_steps: int | None = None) -> Episodes:
    """Read flat arrays (observations, actions, rewards, terminals, timeouts) and cut them into episodes.

    A file NAME.json beside NAME.npz becomes the metadata; its `env_id` and `fps` are taken over. Objects (pickles) in
    the file are refused.

    Raises:
        DataError: the file is missing, cut, no .npz or of another layout, or holds NaN; the message names what.
        ArtefactError: the JSON beside it is malformed.
    """
    path = Path(path)
    arrays = _load(path)
    beside = path.with_suffix(".json")
    facts = files.read_json(beside, what="facts of the data", limit=1 << 20) if beside.is_file() else {}
    return episodes_from_flat(
        arrays,
        max_steps=max_steps,
        env_id=text_or_none(facts, "env_id"),
        fps=facts.get("fps"),
        metadata=facts,
        source=str(path),
    )


def text_or_none(facts: Mapping[str, Any], name: str) -> str | None:
    """Return a text of the facts, or None where there is none."""
    value = facts.get(name)
    return value if isinstance(value, str) else None


def _load(path: Path) -> dict[str, Array]:
    try:
        with open(path, "rb") as source, np.load(source, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds one array; give an .npz of several, named as in D4RL")
            return {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give an .npz of flat arrays") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(
            f"{path} cannot be read as .npz ({error}); it is cut or of another format, copy it again"
        ) from error
