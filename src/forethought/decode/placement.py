"""Where things go: devices, transports, cores, threads and pages of a target and its draft."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Literal

import torch

from forethought.decode.batching.verifier import Setting
from forethought.decode.options import DType, EngineConfig, SpeculativeConfig
from forethought.nn.config import TransformerConfig
from forethought.nn.devices import usable_device
from forethought.nn.native.model import WeightType

MEMORY_SHARE = 0.25


def num_threads_for(settings: EngineConfig, speculative: SpeculativeConfig) -> int:
    """Return the threads of the target: all cores, less those of a draft process."""
    if settings.num_threads is not None:
        return settings.num_threads
    beside = speculative.num_threads if transport_for(settings, speculative) == "process" else 0
    return max(len(os.sched_getaffinity(0)) - beside, 1)


def transport_for(settings: EngineConfig, speculative: SpeculativeConfig) -> Literal["process", "thread", "in-process"]:
    """Return where the draft lives: as asked, or beside the target where that can run along with it."""
    if speculative.method not in ("ssd", "draft"):
        return "in-process"
    if speculative.transport != "auto":
        return speculative.transport
    if speculative.method == "draft":
        return "in-process"
    if draft_device(settings, speculative).type != "cpu":
        return "thread"
    return "process" if (os.cpu_count() or 1) > 1 else "in-process"


def draft_device(settings: EngineConfig, speculative: SpeculativeConfig) -> torch.device:
    """Return the draft's device: the target's unless another was asked for.

    Raises:
        ConfigError: it cannot be used.
    """
    return usable_device(settings.device if speculative.device is None else speculative.device)


def weight_type(dtype: DType) -> WeightType | None:
    """Return the type of weights that an executor is asked for; None keeps what there is."""
    return None if dtype == "auto" else dtype


def has_streams(place: torch.device) -> bool:
    """Return whether work on a device goes to streams beside one another, and its memory is its own."""
    return torch.empty(0, device=place).is_cuda


def priority_setting(place: torch.device) -> Setting:
    """Return the block for the target's passes: on a GPU a stream that goes before those of drafts."""
    if not has_streams(place):
        return nullcontext
    # What was asked of the default stream so far (the weights' way to the device) is done before the other one begins.
    torch.cuda.synchronize(place)
    stream = torch.cuda.Stream(place, priority=-1)
    return lambda: torch.cuda.stream(stream)


def draft_core(speculative: SpeculativeConfig) -> int | None:
    """Return the core that a draft process is pinned to: the one asked for, or the last of several."""
    if speculative.draft_core is not None:
        return speculative.draft_core
    cores = sorted(os.sched_getaffinity(0))
    return cores[-1] if len(cores) > 1 else None


def num_pages_for(config: TransformerConfig, settings: EngineConfig, max_model_len: int) -> int:
    """Return how many pages the pool has: enough for all, in a quarter of the memory there is."""
    if settings.num_blocks is not None:
        return settings.num_blocks
    size = settings.block_size
    one = -(-max_model_len // size)
    bytes_a_page = 8 * config.num_layers * size * config.resolved_kv_heads * config.resolved_head_dim
    place = usable_device(settings.device)
    if has_streams(place):
        memory = torch.cuda.mem_get_info(place)[1]
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(one, min(one * settings.max_num_seqs, int(MEMORY_SHARE * memory) // bytes_a_page))
