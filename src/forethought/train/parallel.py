"""One process or many behind one switch: none, DDP, or FSDP2, under torchrun.

A strategy wraps the module, averages figures over ranks, and gathers or places tensors, so that the loop and its
checkpoints are the same for all: a checkpoint holds whole tensors and resumes under any number of processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from forethought.core.errors import ConfigError, TrainingError, unknown_name
from forethought.core.run import Run
from forethought.nn.devices import usable_device

DEFAULT_TIMEOUT_SECONDS = 600.0
_THREADS_REST_SECONDS = 0.1
_LOST_RANK = ("gloo", "timed out", "timeout", "connection closed", "connection reset", "broken pipe", "nccl")


class Parallel:
    """A single process; the strategies for many derive from it."""

    def __init__(self, device: torch.device, *, rank: int = 0, world_size: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.world_size = world_size

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run directory."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module to call; its parameters are those to optimise from now on."""
        return module

    def prepare(self, _members: Iterable[torch.optim.Optimizer]) -> None:
        """Make the optimisers of the wrapped module step as those of a single process would."""

    def accumulating(self, _module: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which gradients are added up without being exchanged."""
        return nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a figure over all ranks, on every rank."""
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size

    def mean_figures(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Return the means of named figures over all ranks, the same on every rank; all have to give the same names."""
        if self.world_size == 1 or not figures:
            return dict(figures)
        names = sorted(figures)
        values = torch.tensor([figures[name] for name in names], dtype=torch.float64, device=self.device)
        means = dict(zip(names, self.mean(values).tolist(), strict=True))
        return {name: means[name] for name in figures}

    def clip(self, parameters: Iterable[Tensor], limit: float) -> Tensor:
        """Scale all gradients so that their joint norm is at most the limit; return the norm before."""
        return self.full(nn.utils.clip_grad_norm_(list(parameters), limit, foreach=True))

    def full(self, tensor: Tensor) -> Tensor:
        """Return a whole tensor from what may be this rank's shard; every rank has to call it."""
        return tensor

    def place(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return a whole tensor on the device, or as this rank's shard, of another tensor of the same shape."""
        return tensor.to(like.device)

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Say whether the flag is up on any rank."""
        if self.world_size == 1:
            return flag
        return bool(self.mean(torch.tensor(float(flag), device=self.device)).item() > 0)


class _DataParallel(Parallel):
    def wrap(self, module: nn.Module) -> nn.Module:
        on_gpu = self.device.type != "cpu"
        return nn.parallel.DistributedDataParallel(module, device_ids=[self.device.index] if on_gpu else None)

    def accumulating(self, module: nn.Module) -> AbstractContextManager[None]:
        return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()


class _FullyShardedParallel(Parallel):
    def wrap(self, module: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world_size,))
        for block in _blocks(module):
            fully_shard(block, mesh=mesh)
        # By default the outermost group stays gathered after a forward pass without a backward one, and an average that
        # is swapped in after it would not be seen.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        return module

    def prepare(self, members: Iterable[torch.optim.Optimizer]) -> None:
        muon: Any = getattr(torch.optim, "Muon", ())
        for member in members:
            if isinstance(member, muon):
                member.register_step_pre_hook(_gather_for_muon)

    def full(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def place(self, tensor: Tensor, like: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor):
            return tensor.to(like.device)
        # Every rank read the same file, so none needs to send: each cuts its own shard.
        return distribute_tensor(tensor.to(self.device), like.device_mesh, like.placements, src_data_rank=None)


STRATEGIES: dict[str, Callable[..., Parallel]] = {
    "none": Parallel,
    "ddp": _DataParallel,
    "fsdp": _FullyShardedParallel,
}


@contextmanager
def open_parallel(
    strategy: str = "none", device: str = "cpu", *, timeout: float = DEFAULT_TIMEOUT_SECONDS
) -> Generator[Parallel, None, None]:
    """Yield the named strategy, joined to the process group that torchrun describes, and leave the group at the end.

    `timeout` is in seconds: how long a rank waits for the others in one exchange before it gives up.

    Raises:
        ConfigError: the strategy or the device is unknown or not there, or ddp or fsdp is asked for outside torchrun.
        TrainingError: inside the block, another rank died or did not answer within the timeout.
    """
    if strategy not in STRATEGIES:
        raise unknown_name("parallel strategy", strategy, STRATEGIES)
    if strategy == "none":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("torchrun started several processes but the strategy is none; choose ddp or fsdp")
        yield Parallel(usable_device(device))
        return
    rank, world_size, local = _torchrun()
    place = torch.device("cpu") if device == "cpu" else usable_device(f"{device.partition(':')[0]}:{local}")
    if place.type != "cpu":
        torch.accelerator.set_device_index(local)
    with _lost_ranks(rank, timeout):
        _join(place, rank, world_size, timedelta(seconds=timeout))
    try:
        with _lost_ranks(rank, timeout):
            yield STRATEGIES[strategy](place, rank=rank, world_size=world_size)
    finally:
        dist.destroy_process_group()
        # gloo's threads let go of the last tensors a moment after their exchange; one that comes for the interpreter's
        # lock after its end would abort the process (seen in 2 of 20 exits on a busy machine).
        time.sleep(_THREADS_REST_SECONDS)


def open_run(parallel: Parallel, directory: Path | str, **options: Any) -> Run:
    """Open a run on the main rank with the options of `Run.open`; on the others, follow it once it is open.

    Raises:
        TrainingError: on the other ranks, the main rank could not open the run and left.
    """
    if not parallel.is_main:
        parallel.barrier()
        return Run.follow(directory)
    run = Run.open(directory, **options)
    parallel.barrier()
    return run


@contextmanager
def _lost_ranks(rank: int, timeout: float) -> Generator[None, None, None]:
    try:
        yield
    except RuntimeError as error:
        # torch has no class of its own for what gloo reports, so the words decide.
        if not isinstance(error, dist.DistError) and not any(word in str(error).lower() for word in _LOST_RANK):
            raise
        first = str(error).strip().partition("\n")[0]
        raise TrainingError(
            f"rank {rank}: another process of this run died or did not answer within {timeout:g} s ({first}); "
            "read its log, then start the run again to go on from the last checkpoint"
        ) from error


def _join(device: torch.device, rank: int, world_size: int, timeout: timedelta) -> None:
    """Join the process group under a prefix of its own, so that a process can open and leave groups in turn."""
    store, _, _ = next(iter(rendezvous("env://", rank, world_size, timeout=timeout)))
    opening = store.add(f"forethought/openings/{rank}", 1)
    dist.init_process_group(
        "gloo" if device.type == "cpu" else None,
        store=PrefixStore(f"forethought/{opening}", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )


def _torchrun() -> tuple[int, int, int]:
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    except KeyError as error:
        raise ConfigError(
            f"{error.args[0]} is not set: ddp and fsdp run under torchrun, "
            "for example: torchrun --nproc-per-node 2 -m forethought pretrain fit ..."
        ) from error


def _blocks(module: nn.Module) -> list[Any]:
    """Return the repeated blocks that are sharded one by one: the children of every ModuleList."""
    return [child for part in module.modules() if isinstance(part, nn.ModuleList) for child in part]


def _gather_for_muon(optimiser: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
    """Give Muon whole gradients and momenta on every rank.

    Its bf16 Newton-Schulz iteration over shards sums in another order and moves weights by 2e-3 within six steps.
    """
    from torch.distributed.tensor import DTensor, Replicate

    def whole(tensor: Any) -> Any:
        if not isinstance(tensor, DTensor):
            return tensor
        return tensor.redistribute(placements=[Replicate()] * tensor.device_mesh.ndim)

    for group in optimiser.param_groups:
        for parameter in group["params"]:
            parameter.grad = whole(parameter.grad)
            state = optimiser.state[parameter]
            if "momentum_buffer" in state:
                state["momentum_buffer"] = whole(state["momentum_buffer"])
