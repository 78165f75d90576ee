"""Saving and opening models of this room: safetensors and JSON, nothing that runs.

MODELS maps (part, kind) to a class of this library; a directory only names one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from forethought.control.body import Body
from forethought.control.models.base import ControlModel
from forethought.control.models.diffusing import ActionProposal, DiffusionDynamics, JointDiffuser
from forethought.control.models.settings import ModelConfig
from forethought.control.models.state_value import StateValue
from forethought.control.models.stepwise import ClonedPolicy, OneStepDynamics
from forethought.control.models.value import ReturnValue
from forethought.core import files
from forethought.core.artefact import write_kind
from forethought.core.config import from_dict, to_dict
from forethought.core.errors import ArtefactError, unknown_name
from forethought.nn.tensor_files import inside, opened, write_tensors

KIND, FORMAT = "control-model", 1
DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"

MODELS: dict[str, type[Any]] = {
    f"{model.part}.{model.kind}": model
    for model in (
        ActionProposal,
        DiffusionDynamics,
        ReturnValue,
        StateValue,
        JointDiffuser,
        OneStepDynamics,
        ClonedPolicy,
    )
}


def save_model(
    model: ControlModel, directory: Path | str, *, facts: Mapping[str, Any] | None = None, replace: bool = False
) -> Path:
    """Publish a model as an artefact directory that `forethought.load` opens; `facts` are plain JSON, kept beside it.

    Raises:
        RunExistsError: the directory exists and replace is False.
        StorageError: the disk refused; what was there before is untouched.
    """
    directory = Path(directory)
    with files.staged(directory, replace=replace) as staging:
        write_model(model, staging, facts)
    return directory


def write_model(model: ControlModel, staging: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write a model's files into a directory that is being staged."""
    name = f"{model.part}.{model.kind}"
    write_kind(staging, KIND, model=name)
    description = {
        "format": FORMAT,
        "model": name,
        "body": model.body.to_dict(),
        "settings": to_dict(model.settings),
        "facts": dict(facts or {}),
    }
    files.write_bytes(staging / DESCRIPTION, files.dump_json(description))
    write_tensors(staging / WEIGHTS, model.state_dict())


def load_model(directory: Path | str) -> ControlModel:
    """Open a model that `save_model` wrote, on the CPU and ready to be asked.

    Raises:
        ArtefactError: a file is missing, malformed or of another model; the message names it.
        CheckpointError: a file is not the one that was written.
    """
    directory = Path(directory)
    files.verify(directory)
    return read_model(directory)


def read_model(directory: Path) -> ControlModel:
    """Open a model from a directory whose files were verified.

    Raises:
        ArtefactError: a file is missing, malformed or of another model; the message names it.
    """
    description = files.read_json(directory / DESCRIPTION, what="description of a control model")
    if description.get("format") != FORMAT:
        raise ArtefactError(
            f"{directory / DESCRIPTION} has format {str(description.get('format'))[:40]}; this version reads {FORMAT}"
        )
    name = str(description.get("model"))[:80]
    if name not in MODELS:
        raise unknown_name("control model", name, MODELS)
    try:
        body, raw = Body.from_dict(description["body"]), description["settings"]
    except KeyError as error:
        raise ArtefactError(f"{directory / DESCRIPTION} lacks {error}; save the model again") from error
    settings = from_dict(ModelConfig, raw, source=str(directory / DESCRIPTION))
    try:
        model = MODELS[name](body, settings)
    except (ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise ArtefactError(f"{directory / DESCRIPTION} describes no network that can be built: {error}") from error
    _restore(model, directory)
    return model.eval()


def facts_of(directory: Path | str) -> dict[str, Any]:
    """Return the facts that were kept beside a model."""
    return dict(files.read_json(Path(directory) / DESCRIPTION, what="description of a control model").get("facts", {}))


def _restore(model: nn.Module, directory: Path) -> None:
    own = model.state_dict()
    with opened(inside(directory, WEIGHTS)) as source:
        odd = sorted(set(source.keys()) ^ own.keys())
        if odd:
            raise ArtefactError(f"{directory / WEIGHTS} is of another model: {odd[0]} is only in one of the two")
        for name, value in own.items():
            saved = source.get_tensor(name)
            if saved.shape != value.shape:
                raise ArtefactError(
                    f"{directory / WEIGHTS}: {name} has shape {tuple(saved.shape)}, not {tuple(value.shape)}"
                )
            value.copy_(saved)
