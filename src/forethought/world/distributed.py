"""Sums over the ranks of a process group that autograd sees through; with one process they are nothing at all."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_ALONE: ContextVar[bool] = ContextVar("forethought.world.alone", default=False)


@contextmanager
def alone() -> Generator[None, None, None]:
    """Take statistics over this process only, as where every rank looks at the same windows (an evaluation)."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def group_size() -> int:
    """Return the number of processes over which statistics of a batch are taken."""
    if _ALONE.get():
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks, in place, without a gradient."""
    if group_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def differentiable_sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks; its gradient is the sum of theirs."""
    return tensor if group_size() == 1 else _Sum.apply(tensor)  # pyright: ignore[reportReturnType]


def shared_seed(device: torch.device) -> int:
    """Return a seed from the operating system's entropy, the first rank's on every rank."""
    seed = torch.Generator().seed() >> 1
    if group_size() == 1:
        return seed
    carried = torch.tensor(seed, dtype=torch.int64, device=device)
    dist.broadcast(carried, 0)
    return int(carried)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # pyright: ignore
        return all_sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return all_sum(gradients[0].clone())
