"""Single passes: the rows they have, and what they cost.

Shape suffixes: N rows, T tokens.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from pairs import PAGE, graphed, synchronise

from forethought.nn import LanguageModel, TorchPagedModel
from forethought.nn.rows import PagedModel, Rows
from forethought.stats import median_interval, paired_ratio

CONTEXT = 512
BRANCHES, CHAIN = 16, 5


def causal_rows(model: PagedModel, start: int, tokens_T: Sequence[int]) -> Rows:
    """Return the pass that reads tokens at positions from `start` on, in the leading pages; all rows are wanted."""
    count = len(tokens_T)
    positions_N = np.arange(start, start + count, dtype=np.int32)
    num_pages = -(-(start + count) // model.page_size)
    return Rows(
        tokens_N=np.array(tokens_T, dtype=np.int32),
        positions_N=positions_N,
        slots_N=positions_N,
        sequence_N=np.zeros(count, dtype=np.int32),
        visible_N=positions_N + np.int32(1),
        pages_SP=np.arange(num_pages, dtype=np.int32)[None],
        logits_M=np.arange(count, dtype=np.int32),
    )


def fork_rows(model: PagedModel, start: int, tokens_T: Sequence[int]) -> Rows:
    """Return the pass in which each token follows the same `start` ones, its key in the slots behind them."""
    rows, count = causal_rows(model, start, tokens_T), len(tokens_T)
    return Rows(
        tokens_N=rows.tokens_N,
        positions_N=np.full(count, start, dtype=np.int32),
        slots_N=rows.slots_N,
        sequence_N=rows.sequence_N,
        visible_N=np.full(count, start, dtype=np.int32),
        pages_SP=rows.pages_SP,
        logits_M=rows.logits_M,
        extra_NE=rows.slots_N[:, None],
    )


def time_passes(model: LanguageModel, row_counts: Sequence[int], repeats: int) -> dict[str, Any]:
    """Return medians and intervals in ms of passes behind a context, taken in turns over their sizes.

    A time runs from the call to the token ids on the host, as the engine sees it.
    """
    pages = -(-(CONTEXT + 64) // PAGE)
    fast, plain = graphed(model, pages), TorchPagedModel(model, pages, PAGE)
    passes = {f"graphed.{n}": (fast, n) for n in row_counts} | {f"eager.{n}": (plain, n) for n in (1, 8)}
    calls: dict[str, Callable[[], object]] = {
        name: partial(executor.greedy, causal_rows(executor, CONTEXT, range(n)))
        for name, (executor, n) in passes.items()
    }
    fork, one = fork_rows(fast, CONTEXT, range(BRANCHES)), causal_rows(fast, CONTEXT, [0])
    later = np.arange(CONTEXT + 1, CONTEXT + CHAIN, dtype=np.int32)[None]
    calls[f"graphed.fork_of_{BRANCHES}"] = lambda: fast.greedy(fork)
    calls[f"graphed.chain_of_{CHAIN}"] = lambda: fast.greedy_chain(one, later)
    seconds = in_turns(calls, repeats)
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    rate = size / statistics.median(seconds["graphed.1"])
    milliseconds = {name: interval_of([1e3 * each for each in own]) for name, own in seconds.items()}
    return {"context": CONTEXT, "weight_bytes": size, "bytes_per_second": rate, "milliseconds": milliseconds}


def in_turns(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of every call, so many times after two to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-2, repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def interval_of(values: Sequence[float], below: Sequence[float] | None = None) -> dict[str, float]:
    """Return the median with its 95 % interval, of values or of their paired ratios to others."""
    interval = median_interval(values) if below is None else paired_ratio(values, below)
    return {"median": interval.estimate, "low": interval.low, "high": interval.high}


def describe_passes(name: str, found: dict[str, Any]) -> str:
    """Return one line for people."""
    medians = {key: value["median"] for key, value in found["milliseconds"].items()}
    rows = " ".join(f"{key.partition('.')[2]}:{value:.2f}" for key, value in medians.items() if "graphed" in key)
    eager = " ".join(f"{key.partition('.')[2]}:{value:.2f}" for key, value in medians.items() if "eager" in key)
    rate = f"{found['weight_bytes'] / 1e9:.2f} GB, {found['bytes_per_second'] / 1e9:.0f} GB/s at 1 row"
    return f"passes {name} ({rate}), ms by rows: {rows}; eager {eager}"


def free(device: torch.device) -> None:
    """Wait for what still runs, for it may write to memory that is given away, and give back what is no longer used."""
    gc.collect()
    synchronise(device)
    if device.type != "cpu":
        torch.cuda.empty_cache()
