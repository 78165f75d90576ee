"""How long the native paged executor takes: one token, several tokens, a tree, a prefill; on one core.

Usage: taskset -c 1 python benchmarks/kernels.py [--quick] [--json]
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from forethought.nn import LanguageModel, TransformerConfig, num_parameters
from forethought.nn.native import NativePagedModel
from forethought.nn.native.model import WeightType
from forethought.nn.rows import Rows
from harness import Figures, run_benchmark

CONTEXT, FAR, PAGE_SIZE, NUM_PAGES = 128, 896, 16, 64
# Hidden size, layers, heads, middle, vocabulary: a draft, and targets of about 12, 31 and 91 million parameters.
SHAPES = {
    "draft": (128, 2, 2, 384, 4096),
    "12m": (384, 6, 6, 1024, 4096),
    "31m": (512, 8, 8, 1408, 8192),
    "91m": (768, 12, 12, 2048, 8192),
}


def rows_behind(context: int, count: int, *, vocabulary: int, wanted: int | None = None) -> Rows:
    """Return `count` causal rows behind a context; logits of the last `wanted`, or of all."""
    positions = np.arange(context, context + count, dtype=np.int32)
    first = 0 if wanted is None else count - wanted
    return Rows(
        tokens_N=positions * 7919 % vocabulary,
        positions_N=positions,
        slots_N=positions.copy(),
        sequence_N=np.zeros(count, dtype=np.int32),
        visible_N=positions + 1,
        pages_SP=np.arange(NUM_PAGES, dtype=np.int32)[None],
        logits_M=np.arange(first, count, dtype=np.int32),
    )


def tree_behind(context: int, count: int, depth: int, *, vocabulary: int) -> Rows:
    """Return `count` branches behind a context, each with `depth` tokens of its own."""
    rows = rows_behind(context, count, vocabulary=vocabulary)
    extra = np.arange(count * depth, dtype=np.int32).reshape(count, depth) + context + count
    extra[:, -1] = rows.slots_N
    positions = np.full(count, context + depth - 1, dtype=np.int32)
    visible = np.full(count, context, dtype=np.int32)
    every = (rows.tokens_N, positions, rows.slots_N, rows.sequence_N, visible, rows.pages_SP, rows.logits_M)
    return Rows(*every, extra_NE=extra)


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Return the least time of many calls."""
    call()
    least = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
    return 1e3 * least


def measure(quick: bool) -> Figures:
    """Least times of greedy passes in milliseconds, the Python call included, and the speed of a prefill."""
    figures: dict[str, object] = {}
    for name, shape in SHAPES.items():
        if quick and name == "91m":
            continue
        hidden, layers, heads, middle, vocabulary = shape
        config = TransformerConfig(
            vocab_size=vocabulary, hidden_size=hidden, num_layers=layers, num_heads=heads, intermediate_size=middle
        )
        model = LanguageModel(config)
        kinds: tuple[WeightType, ...] = ("float32", "bfloat16")
        for kind in kinds:
            executor = NativePagedModel(model, NUM_PAGES, PAGE_SIZE, dtype=kind)
            for key, value in _passes(executor, vocabulary, 20 if quick else 200).items():
                figures[f"{name}_{kind}_{key}"] = value
    return figures


def _passes(executor: NativePagedModel, vocabulary: int, repeats: int) -> dict[str, float]:
    prefill = rows_behind(0, 256, vocabulary=vocabulary, wanted=1)
    executor.greedy(prefill)
    figures: dict[str, float] = {}
    for count in (1, 4, 8, 16):
        rows = rows_behind(CONTEXT, count, vocabulary=vocabulary)
        figures[f"rows_{count}_ms"] = milliseconds(lambda rows=rows: executor.greedy(rows), repeats)
    for count in (1, 8):
        rows = rows_behind(FAR, count, vocabulary=vocabulary)
        figures[f"rows_{count}_at_{FAR}_ms"] = milliseconds(lambda rows=rows: executor.greedy(rows), repeats)
    tree = tree_behind(CONTEXT, 16, 5, vocabulary=vocabulary)
    figures["tree_16_ms"] = milliseconds(lambda: executor.greedy(tree), repeats)
    slots = np.arange(CONTEXT + 1, CONTEXT + 8, dtype=np.int32)[None]
    one = rows_behind(CONTEXT, 1, vocabulary=vocabulary)
    figures["chain_8_ms"] = milliseconds(lambda: executor.greedy_chain(one, slots), repeats)
    spent = milliseconds(lambda: executor.greedy(prefill), max(5, repeats // 20))
    products = 2 * 256 * num_parameters(executor.config).non_embedding
    figures["prefill_256_ms"], figures["prefill_gflops"] = spent, products / spent / 1e6
    return figures


if __name__ == "__main__":
    run_benchmark("kernels", measure)
