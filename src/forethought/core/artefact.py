"""Artefact directories: what kind a directory is, and the one fixed table of functions that open each kind.

The table maps a kind to a function of this library. Nothing in a directory ever names code to run.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from forethought.core import files
from forethought.core.errors import ArtefactError, nearest

ARTEFACT = "artefact.json"
ARTEFACT_FORMAT = 1

LOADERS: dict[str, str] = {
    "control-agent": "forethought.control:load_agent",
    "control-model": "forethought.control:load_model",
    "corpus": "forethought.data:open_corpus",
    "episodes": "forethought.data:open_episodes",
    "language-model": "forethought.nn:load_language_model",
    "run": "forethought.core.run:open_run",
    "world-model": "forethought.world:load_world_model",
}

_HUGGING_FACE_FAMILIES = ("llama", "qwen2", "qwen3")


def write_kind(directory: Path, kind: str, **facts: Any) -> None:
    """Write artefact.json into a directory that is being staged; facts are plain JSON values."""
    files.write_bytes(directory / ARTEFACT, kind_bytes(kind, **facts))


def kind_bytes(kind: str, **facts: Any) -> bytes:
    """Return the content of artefact.json for a kind."""
    return files.dump_json({"format": ARTEFACT_FORMAT, "kind": kind, **facts})


def read_kind(directory: Path | str) -> str:
    """Return the kind of an artefact directory; a Hugging Face directory of a known family is a language model.

    Raises:
        ArtefactError: the directory does not exist, has no kind, or a kind or format this version does not know.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ArtefactError(f"{directory} is not a directory; give a directory that this library or Hugging Face wrote")
    path = directory / ARTEFACT
    if not path.is_file():
        return _foreign_kind(directory)
    facts = files.read_json(path, what="artefact description", limit=1 << 20)
    kind, version = facts.get("kind"), facts.get("format")
    if not isinstance(version, int) or not 1 <= version <= ARTEFACT_FORMAT:
        raise ArtefactError(
            f"{path} has format {_short(version)}; this version reads 1 to {ARTEFACT_FORMAT}; upgrade forethought"
        )
    if not isinstance(kind, str) or kind not in LOADERS:
        hint = nearest(str(kind)[:80], LOADERS)
        raise ArtefactError(f"{path} names the kind {_short(kind)}; known kinds: {', '.join(sorted(LOADERS))}.{hint}")
    return kind


def resolve(directory: Path | str) -> tuple[str, Path]:
    """Return the kind and place of the artefact to open: a finished run stands for the model that it made.

    Raises:
        ArtefactError: as read_kind.
    """
    directory = Path(directory)
    kind = read_kind(directory)
    if kind == "run" and (directory / "model").is_dir():
        directory = directory / "model"
        kind = read_kind(directory)
    return kind, directory


def load(directory: Path | str) -> Any:
    """Open any artefact of the library by its kind; no code from the directory is run.

    Raises:
        ArtefactError: the directory is no artefact of a known kind, or it is damaged.
    """
    kind, place = resolve(directory)
    module, _, function = LOADERS[kind].partition(":")
    return getattr(importlib.import_module(module), function)(place)


def _short(value: object) -> str:
    return repr(value)[:80]


def _foreign_kind(directory: Path) -> str:
    config = directory / "config.json"
    if config.is_file():
        family = files.read_json(config, what="model config", limit=1 << 20).get("model_type")
        if family in _HUGGING_FACE_FAMILIES:
            return "language-model"
        if family is not None:
            raise ArtefactError(
                f"{config} has model_type {_short(family)}; "
                f"families that can be opened: {', '.join(_HUGGING_FACE_FAMILIES)}"
            )
    raise ArtefactError(
        f"{directory} holds neither {ARTEFACT} nor a Hugging Face config.json; give a run, a model or another artefact"
    )
