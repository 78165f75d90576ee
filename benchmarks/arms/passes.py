"""Times of single forward passes: ours through the paged executor, and llama.cpp's on the same weights."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from forethought.nn import LanguageModel, TransformerConfig
from forethought.nn.paged import open_paged_model
from forethought.nn.rows import PagedModel, Rows

CONTEXT, PAGE, READ = 512, 16, 64
SHAPES = {
    "12m": TransformerConfig(
        vocab_size=4096, hidden_size=384, num_layers=6, num_heads=6, intermediate_size=1024, max_positions=CONTEXT
    ),
    "30m": TransformerConfig(
        vocab_size=8192, hidden_size=512, num_layers=8, num_heads=8, intermediate_size=1408, max_positions=CONTEXT
    ),
    "91m": TransformerConfig(
        vocab_size=8192, hidden_size=768, num_layers=12, num_heads=12, intermediate_size=2048, max_positions=CONTEXT
    ),
}


def rows_after(tokens: list[int], start: int) -> Rows:
    """Return the rows that read tokens at positions start, start + 1, ... of one sequence and want every logit."""
    count = len(tokens)
    positions = np.arange(start, start + count, dtype=np.int32)
    return Rows(
        tokens_N=np.array(tokens, dtype=np.int32),
        positions_N=positions,
        slots_N=positions,
        sequence_N=np.zeros(count, dtype=np.int32),
        visible_N=positions + 1,
        pages_SP=np.arange(CONTEXT // PAGE, dtype=np.int32)[None],
        logits_M=np.arange(count, dtype=np.int32),
    )


def passes_of(model: PagedModel, counts: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Return a function for each number of tokens that reads so many after a text of READ tokens."""
    model.logits(rows_after(list(range(1, READ + 1)), 0))
    made = {count: rows_after(list(range(1, count + 1)), READ) for count in counts}
    return {str(count): (lambda rows=rows: model.greedy(rows)) for count, rows in made.items()}


def measure_passes(
    size: str, repeats: int, *, rival: bool, counts: tuple[int, ...] = (1, 2, 4, 8, 16)
) -> dict[str, Any]:
    """Time one size on the core this process is pinned to, all arms in turn; milliseconds, medians and minima."""
    model = LanguageModel(SHAPES[size], seed=0)
    runs: dict[str, Callable[[], object]] = {}
    for dtype in ("float32", "bfloat16"):
        paged = open_paged_model(model, num_pages=CONTEXT // PAGE, page_size=PAGE, dtype=dtype, num_threads=1)
        runs |= {f"{dtype}.{count}": run for count, run in passes_of(paged, counts).items()}
    if rival:
        from arms.llamacpp import LlamaCpp, write_gguf

        path = Path(tempfile.mkdtemp()) / "model.gguf"
        write_gguf(model, path)
        llama = LlamaCpp(path, num_threads=1, context=CONTEXT)
        llama.decode(list(range(1, READ + 1)), 0)
        for count in counts:
            tokens = list(range(1, count + 1))
            runs[f"llamacpp.{count}"] = lambda tokens=tokens: llama.decode(tokens, READ)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(repeats + 2):
        for name in sorted(runs, reverse=round_number % 2 == 1):
            started = time.perf_counter()
            runs[name]()
            if round_number >= 2:
                seconds[name].append(time.perf_counter() - started)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": parameters,
        "float32_megabytes": parameters * 4 / 1e6,
        "median_ms": {name: round(1e3 * statistics.median(values), 4) for name, values in seconds.items()},
        "minimum_ms": {name: round(1e3 * min(values), 4) for name, values in seconds.items()},
        "seconds": seconds,
    }
