"""Checkpoints: tensors and JSON state published as one directory a step, verified before they are used.

A checkpoint is `step-00001234/` with one safetensors file a group of tensors (model, optimizer, ema, ...), state.json
and manifest.json. The newest ones and the best one are kept; a damaged one is named, and on request passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.core import files
from forethought.core.errors import ArtefactError, CheckpointError, ConfigError
from forethought.core.faults import fault

if TYPE_CHECKING:
    from torch import Tensor

STATE = "state.json"
STATE_FORMAT = 1
_STEP = re.compile(r"step-([0-9]{8,18})")
_MAX_STATE_BYTES = 16 << 20

Groups = Mapping[str, Mapping[str, "Tensor"]]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its step, its JSON state and the place of its tensors."""

    directory: Path
    step: int
    state: dict[str, Any]
    names: frozenset[str]

    def tensors(self, group: str) -> dict[str, Tensor]:
        """Read one group of tensors.

        Raises:
            CheckpointError: the group is not in this checkpoint, or its file is malformed.
        """
        import safetensors
        import safetensors.torch

        path = self.directory / f"{group}.safetensors"
        if path.name not in self.names:
            present = sorted(Path(name).stem for name in self.names if name.endswith(".safetensors"))
            raise CheckpointError(f"{self.directory} has no tensors {group!r}; it holds: {', '.join(present)}")
        try:
            return safetensors.torch.load_file(path)  # pyright: ignore[reportUnknownMemberType]
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is no readable safetensors file ({error}); use an earlier one") from error


class CheckpointStore:
    """The checkpoints of one run, in one directory.

    Only the newest `keep` checkpoints and the best one stay; each save publishes by one rename, so that a crash at any
    instant leaves every earlier checkpoint usable.

    Raises:
        ConfigError: keep is below 1.
    """

    def __init__(self, directory: Path | str, *, keep: int = 2) -> None:
        if keep < 1:
            raise ConfigError(f"keep {keep} is below 1; a run keeps at least its newest checkpoint to resume from")
        self.directory = Path(directory)
        self.keep = keep

    def save(self, step: int, groups: Groups, state: Mapping[str, Any], *, best_step: int | None = None) -> Path:
        """Publish the checkpoint of a step and drop those no longer kept; saving an intact step again is a no-op.

        Checkpoints of later steps go too: a run only comes back to this step by passing over them as damaged.

        Raises:
            StorageError: the disk refused; the checkpoints before this one are untouched.
        """
        target = self.directory / f"step-{step:08d}"
        if not self._intact(step):
            contents: dict[str, bytes | Callable[[], bytes]] = {
                f"{name}.safetensors": _serialiser(tensors) for name, tensors in groups.items()
            }
            contents[STATE] = files.dump_json({"format": STATE_FORMAT, "step": step, **state})
            fault("save.begin")
            files.publish(target, contents, replace=True)
        fault("save.before_prune")
        self._prune(step, best_step)
        return target

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        found = [(match, entry) for entry in self.directory.iterdir() if (match := _STEP.fullmatch(entry.name))]
        complete = [int(match[1]) for match, entry in found if (entry / files.MANIFEST).is_file()]
        return sorted(step for step in complete if (self.directory / f"step-{step:08d}").is_dir())

    def load(self, step: int) -> Checkpoint:
        """Verify the checkpoint of a step, every byte of it, and return it.

        Raises:
            CheckpointError: it is missing, incomplete or damaged; the message names the file.
        """
        directory = self.directory / f"step-{step:08d}"
        names = files.verify(directory)
        if STATE not in names:
            raise CheckpointError(f"{directory} holds no {STATE}, so it is not a checkpoint of this library")
        try:
            state = files.read_json(directory / STATE, what="checkpoint state", limit=_MAX_STATE_BYTES)
        except ArtefactError as error:
            raise CheckpointError(str(error)) from error
        if not isinstance(state.get("format"), int) or not 1 <= state["format"] <= STATE_FORMAT:
            raise CheckpointError(
                f"{directory / STATE} has format {state.get('format')!r}; this version reads 1 to {STATE_FORMAT}"
            )
        if state.get("step") != step:
            raise CheckpointError(f"{directory} says it is step {state.get('step')}; its name was changed by hand")
        return Checkpoint(directory, step, state, frozenset(names))

    def latest(self, *, fallback: bool = False) -> Checkpoint | None:
        """Return the newest checkpoint, or None where there is none; fallback passes over damaged ones.

        Raises:
            CheckpointError: the newest one is damaged and fallback is False, or all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.load(step)
            except CheckpointError as error:
                if not fallback or step == steps[0]:
                    advice = "" if fallback else "; with fallback the one before it is taken"
                    raise CheckpointError(f"{error}{advice}") from error
        return None

    def _intact(self, step: int) -> bool:
        if not (self.directory / f"step-{step:08d}").exists():
            return False
        try:
            self.load(step)
        except CheckpointError:
            return False
        return True

    def _prune(self, saved: int, best_step: int | None) -> None:
        steps = self.steps()
        kept = {*[step for step in steps if step <= saved][-self.keep :], best_step}
        for step in steps:
            if step not in kept:
                files.remove_directory(self.directory / f"step-{step:08d}")


def _serialiser(tensors: Mapping[str, Tensor]) -> Callable[[], bytes]:
    def serialise() -> bytes:
        import safetensors.torch

        return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})

    return serialise
