"""Averages and snapshots of stacked members: written as the run passes them, candidates at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from forethought.core import files
from forethought.core.run import Run
from forethought.pretrain.members.stacked import StackedModel

Candidate = tuple[str, int, Mapping[str, Tensor]]
_LAST_MODEL = "model"


class Averages:
    """The snapshots of a run by step, and what is made of them; a step that a crash lost is taken from its checkpoint.

    Shapes: stacked tensors [K, ...] by the stacked model's names.
    """

    def __init__(
        self, directory: Path, model: StackedModel, snapshot_steps: Sequence[int], ema_decay: float | None
    ) -> None:
        self._directory, self._model = directory, model
        self._steps, self._ema_decay = list(snapshot_steps), ema_decay

    def record(self, step: int) -> None:
        """Keep the weights of a step, where it is one to keep."""
        if step in self._steps:
            self._write(step, {name: tensor.detach() for name, tensor in self._model.named_parameters()})

    def catch_up(self, run: Run) -> None:
        """Write the snapshot of the step that a run resumes from, if the crash came between checkpoint and snapshot."""
        steps = run.checkpoints.steps()
        if steps and steps[-1] in self._steps and not self._path(steps[-1]).is_dir():
            self._write(steps[-1], run.checkpoints.load(steps[-1]).tensors(_LAST_MODEL))

    def candidates(self, run: Run, keep: Literal["none", "ema", "last_k", "all"]) -> list[Candidate]:
        """Return every model that the run leaves, as (name, member, tensors): members, then averages or snapshots."""
        last = {name: tensor.detach() for name, tensor in self._model.named_parameters()}
        found = self._members("member", last)
        if self._ema_decay is not None and keep in ("ema", "all"):
            found += self._members("ema", run.checkpoints.load(run.checkpoints.steps()[-1]).tensors("ema"))
        snapshots = [self._read(step) for step in self._steps] if keep in ("last_k", "all") else []
        if snapshots and self._steps[-1] == run.checkpoints.steps()[-1]:
            mean = {name: sum(s[name].float() for s in snapshots) / len(snapshots) for name in snapshots[0]}
            return found + self._members("last-k", mean)  # pyright: ignore[reportArgumentType]
        for step, snapshot in zip(self._steps, snapshots, strict=bool(snapshots)):
            found += self._members(f"snapshot-{step}", snapshot)
        return found

    def _members(self, title: str, stacked: Mapping[str, Tensor]) -> list[Candidate]:
        prefix = "stacked.model/"
        own = {name.removeprefix(prefix).replace("/", "."): t for name, t in stacked.items() if name.startswith(prefix)}
        return [
            (f"{title}-{k}", k, {name: tensor[k] for name, tensor in own.items()})
            for k in range(self._model.num_members)
        ]

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step:08d}"

    def _write(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        import safetensors.torch

        data = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        self._directory.mkdir(exist_ok=True)
        files.publish(self._path(step), {"weights.safetensors": data}, replace=True)

    def _read(self, step: int) -> dict[str, Tensor]:
        import safetensors.torch

        files.verify(self._path(step))
        return safetensors.torch.load_file(self._path(step) / "weights.safetensors")
