"""A trained world model as a directory: shape and facts in JSON, tensors in safetensors; nothing in it names code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from forethought.core import files
from forethought.core.artefact import read_kind, resolve, write_kind
from forethought.core.config import from_dict, to_dict
from forethought.core.errors import ArtefactError
from forethought.nn.devices import usable_device
from forethought.world.config import WorldConfig
from forethought.world.model import WorldModel

KIND = "world-model"
SHAPE, TENSORS = "world.json", "model.safetensors"


def save_world_model(
    model: WorldModel, directory: Path | str, *, facts: Mapping[str, Any] | None = None, replace: bool = False
) -> Path:
    """Write a model into a directory of its own, published by one rename; `facts` are plain JSON values kept with it.

    Raises:
        RunExistsError: the directory exists and replace is False.
        StorageError: the disk refused.
    """
    directory = Path(directory)
    with files.staged(directory, replace=replace) as staging:
        write_kind(staging, KIND)
        files.write_json(staging / SHAPE, {"config": to_dict(model.config), "facts": dict(facts or {})})
        tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        files.write_bytes(staging / TENSORS, safetensors.torch.save(tensors))
    return directory


def load_world_model(directory: Path | str, *, device: torch.device | str = "cpu") -> WorldModel:
    """Read a model, in eval mode; a finished run stands for the model that it made. `model.facts` says what it is.

    Raises:
        ArtefactError: the directory holds no world model, or a file in it is malformed.
        CheckpointError: a file is missing or damaged.
    """
    kind, directory = resolve(directory)
    if kind != KIND:
        raise ArtefactError(f"{directory} is a {kind}; give a world model or a run of `forethought world train`")
    files.verify(directory)
    shape = files.read_json(directory / SHAPE, what="world model")
    config = from_dict(WorldConfig, shape.get("config", {}), source=str(directory / SHAPE))
    try:
        tensors = safetensors.torch.load_file(directory / TENSORS)
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtefactError(f"{directory / TENSORS} is no readable safetensors file ({error})") from error
    model = WorldModel(config)
    fill(model, tensors, source=str(directory / TENSORS))
    model.facts = dict(shape.get("facts", {}))
    return model.to(usable_device(device)).eval().requires_grad_(False)


def fill(model: WorldModel, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copy tensors into a model of the same names and shapes.

    Raises:
        ArtefactError: a name or a shape differs; the message names the first.
    """
    own = model.state_dict()
    odd = sorted(own.keys() ^ tensors.keys())
    if odd:
        side = "lacks" if odd[0] in own else "has the unknown"
        raise ArtefactError(f"{source} {side} tensor {odd[0]!r} ({len(odd)} names differ); it is of another model")
    for name, value in own.items():
        if tensors[name].shape != value.shape:
            raise ArtefactError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, the model wants {tuple(value.shape)}"
            )
        value.copy_(tensors[name])


def is_world_model(directory: Path | str) -> bool:
    """Say whether a directory is a world model or a run that made one."""
    try:
        read_kind(directory)
        return resolve(directory)[0] == KIND
    except ArtefactError:
        return False
