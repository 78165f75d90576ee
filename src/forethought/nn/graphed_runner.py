"""How passes between fixed buffers run: as captured CUDA graphs where the device has them, else step by step.

A graph that is replayed reads and writes the memory that it was captured with. Threads may capture and replay for
models of their own, each in its own stream: captures take turns, and nothing here waits for the whole device, which
would break a capture that is under way elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WARM_UPS = 2
_CAPTURING = threading.Lock()


class Runner(Protocol):
    """What a model asks of its device; one thread calls it, always with the same stream."""

    def run(self, key: Hashable, compute: Callable[[], None]) -> None:
        """Run what `compute` does: itself, or, where it ran before under this key, what was captured of it then."""
        ...

    def forget(self, key: Hashable) -> None:
        """Drop what was captured under a key."""
        ...

    def host_buffer(self, shape: tuple[int, ...]) -> Tensor:
        """Return int32 zeros on the host from which copies to the device need not be waited for."""
        ...

    def await_sent(self) -> None:
        """Wait until the copies that `note_sent` came after have been made: their sources may be written again."""
        ...

    def note_sent(self) -> None:
        """Mark the copies to the device asked for so far."""
        ...

    def fetch(self, values: Tensor) -> NDArray[np.int64]:
        """Return whole numbers from the device when all that was asked of it is done."""
        ...


def runner_for(device: torch.device) -> Runner:
    """Return the runner of a device."""
    has_graphs = torch.empty(0, device=device).is_cuda
    return GraphRunner(device) if has_graphs else PlainRunner()


class PlainRunner:
    """Runs everything as it is, on any device."""

    def run(self, key: Hashable, compute: Callable[[], None]) -> None:
        """Run it."""
        compute()

    def forget(self, key: Hashable) -> None:
        """Do nothing: nothing was captured."""

    def host_buffer(self, shape: tuple[int, ...]) -> Tensor:
        """Return int32 zeros."""
        return torch.zeros(shape, dtype=torch.int32)

    def await_sent(self) -> None:
        """Do nothing: copies are made when they are asked for."""

    def note_sent(self) -> None:
        """Do nothing."""

    def fetch(self, values: Tensor) -> NDArray[np.int64]:
        """Return the numbers."""
        return values.cpu().numpy().astype(np.int64, copy=True)


class GraphRunner:
    """Captures what is run under each key in a CUDA graph; all graphs share one pool of memory.

    A graph's kernels have the priority of the stream that they were captured in. That is the caller's own where it has
    one; for the default stream, in which nothing can be captured, it is one of high priority.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._memory = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream(device, priority=-1)
        self._sent, self._fetched = torch.cuda.Event(), torch.cuda.Event()

    def run(self, key: Hashable, compute: Callable[[], None]) -> None:
        """Replay the graph of a key, capturing it first where there is none; `compute` must bear being run again."""
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._capture(compute)
        graph.replay()

    def forget(self, key: Hashable) -> None:
        """Drop the graph of a key when it does not run any more."""
        graph = self._graphs.pop(key, None)
        if graph is not None:
            torch.cuda.current_stream(self._device).synchronize()
            graph.reset()

    def host_buffer(self, shape: tuple[int, ...]) -> Tensor:
        """Return int32 zeros in pinned memory."""
        return torch.zeros(shape, dtype=torch.int32, pin_memory=True)

    def await_sent(self) -> None:
        """Wait for the event of the last copies."""
        self._sent.synchronize()

    def note_sent(self) -> None:
        """Record the event of the last copies."""
        self._sent.record(torch.cuda.current_stream(self._device))

    def fetch(self, values: Tensor) -> NDArray[np.int64]:
        """Return the numbers through pinned memory, waiting for this stream only."""
        host = torch.empty(values.shape, dtype=torch.int64, pin_memory=True)
        host.copy_(values, non_blocking=True)
        self._fetched.record(torch.cuda.current_stream(self._device))
        self._fetched.synchronize()
        return host.numpy().copy()

    def _capture(self, compute: Callable[[], None]) -> torch.cuda.CUDAGraph:
        current = torch.cuda.current_stream(self._device)
        is_default = current == torch.cuda.default_stream(self._device)
        stream = self._side if is_default else current
        stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        with _CAPTURING, torch.cuda.stream(stream):
            # Libraries make their handles and workspaces at first use, which must not happen within a capture.
            for _ in range(_WARM_UPS):
                compute()
            stream.synchronize()
            # Only this thread must keep from what a capture forbids; another may be at work in its own stream.
            graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
            try:
                compute()
            finally:
                graph.capture_end()
        current.wait_stream(stream)
        return graph
