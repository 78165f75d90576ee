"""What a training run is made of besides its config: whole tensors by name under every strategy, and the way back."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from forethought.core.checkpoint import Checkpoint
from forethought.core.errors import CheckpointError
from forethought.train.optim import Optimisers
from forethought.train.parallel import Parallel


class Average:
    """An exponential moving average of a module's parameters, kept in fp32 beside them."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._names = [name for name, _ in module.named_parameters()]
        self._live = [parameter for _, parameter in module.named_parameters()]
        self.tensors: list[Tensor] = [parameter.detach().clone().float() for parameter in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the parameters by 1 - decay."""
        for tensor, parameter in zip(self.tensors, self._live, strict=True):
            tensor.lerp_(parameter.float(), 1.0 - self.decay)

    @contextmanager
    def swapped(self) -> Generator[None, None, None]:
        """Put the average in the module's place for the length of a block."""
        kept = [parameter.detach().clone() for parameter in self._live]
        self._write(self.tensors)
        try:
            yield
        finally:
            self._write(kept)

    def named(self) -> dict[str, Tensor]:
        """Return the average by parameter name."""
        return dict(zip(self._names, self.tensors, strict=True))

    @torch.no_grad()
    def _write(self, tensors: list[Tensor]) -> None:
        for parameter, tensor in zip(self._live, tensors, strict=True):
            parameter.copy_(tensor)


def capture(
    module: nn.Module, optimisers: Optimisers, average: Average | None, parallel: Parallel
) -> dict[str, dict[str, Tensor]]:
    """Return whole tensors in groups (model, optimizer, ema); every rank has to call it, the main one keeps them."""
    groups = {"model": module_tensors(module), "optimizer": optimisers.state()}
    if average is not None:
        groups["ema"] = average.named()
    return {group: gather(tensors, parallel) for group, tensors in groups.items()}


def gather(tensors: Mapping[str, Tensor], parallel: Parallel) -> dict[str, Tensor]:
    """Return whole tensors by name from what may be this rank's shards; every rank has to call it."""
    return {name: parallel.full(tensor.detach()) for name, tensor in tensors.items()}


def restore(
    checkpoint: Checkpoint, module: nn.Module, optimisers: Optimisers, average: Average | None, parallel: Parallel
) -> None:
    """Put a checkpoint's tensors back, sharded as the module is now.

    Raises:
        CheckpointError: the checkpoint is of another model; the message names the first tensor that does not fit.
    """
    restore_module(checkpoint.tensors("model"), module, parallel, source=str(checkpoint.directory))
    if average is not None:
        saved = checkpoint.tensors("ema")
        own = average.named()
        average.tensors = [parallel.place(saved[name], own[name]) for name in own]
    live = {name: parameter for name, parameter in module.named_parameters()}
    placed: dict[str, Tensor] = {}
    for key, tensor in checkpoint.tensors("optimizer").items():
        owner = live.get(key.rpartition("/")[0])
        # AdamW keeps its step count on the CPU unless it is fused on a device; only full-shaped state moves.
        placed[key] = parallel.place(tensor, owner) if owner is not None and tensor.shape == owner.shape else tensor
        if owner is not None and tensor.ndim == 0 and owner.device.type != "cpu":
            placed[key] = tensor.to(owner.device)
    optimisers.load_state(placed)


@torch.no_grad()
def restore_module(saved: dict[str, Tensor], module: nn.Module, parallel: Parallel, *, source: str) -> None:
    """Copy saved tensors into a module of the same names and shapes.

    Raises:
        CheckpointError: a name or a shape differs.
    """
    own = module_tensors(module)
    odd = sorted(own.keys() ^ saved.keys())
    if odd:
        raise CheckpointError(f"{source} is of another model: {odd[0]} is only in one of the two ({len(odd)} differ)")
    for name, tensor in own.items():
        if saved[name].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(saved[name].shape)}, the model wants {tuple(tensor.shape)}"
            )
        tensor.copy_(parallel.place(saved[name], tensor))


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and persistent buffers by name, a tied tensor once."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors
