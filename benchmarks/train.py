"""The training loop against a bare hand-written one, and the share of the processor's peak that both reach.

Both arms train the same model class on the same corpus in one process, a few steps of each in turn, so that a drift of
the machine's speed hits both alike. The bare arm is what one would write by hand: windows of the memory-mapped tokens,
cross-entropy, clipping, fused AdamW, a cosine rate. The library's arm adds what the loop promises: pure batches with
document reshuffle, records of every step, seeded noise, stop requests.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional

from forethought.core.rng import generator
from forethought.core.run import Run
from forethought.data import STDLIB, Corpus, CorpusConfig, PackedBatches, prepare_corpus
from forethought.nn import LanguageModel, TransformerConfig, flops_per_token, num_parameters
from forethought.pretrain import next_token_loss
from forethought.stats import median_interval, paired_ratio
from forethought.train import LoopConfig, OptimiserConfig, Parallel, build_optimisers, train
from harness import run_benchmark

VOCAB, CONTEXT, BATCH = 4096, 256, 8
SHAPES = {"1m": (128, 3, 2), "3m": (192, 5, 3), "10m": (384, 5, 6)}
FULL_ROUNDS = {"1m": 40, "3m": 30, "10m": 16}
QUICK_ROUNDS = {"1m": 7, "3m": 5, "10m": 3}
WARM_UP = 2
STEPS_A_ROUND = 2


def measure(quick: bool) -> dict[str, object]:
    """Time both loops at 1 M, 3 M and 10 M parameters, and the matrix product that bounds them."""
    rounds = QUICK_ROUNDS if quick else FULL_ROUNDS
    figures: dict[str, object] = {"threads": torch.get_num_threads(), "batch": BATCH, "context": CONTEXT}
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = CorpusConfig(vocab_size=VOCAB, max_bytes=4 << 20)
        corpus = prepare_corpus([STDLIB], Path(folder) / "corpus", settings)
        for name, shape in SHAPES.items():
            peak = gemm_peak(4 if quick else 10)
            measured, pairs = compare(corpus, Path(folder), name, shape, rounds[name], peak)
            figures |= measured
            ratios += pairs
    overall = median_interval(ratios)
    figures["throughput_over_bare"] = min(float(figures[f"throughput_over_bare_{name}"]) for name in SHAPES)  # type: ignore[arg-type]
    figures["throughput_over_bare_all"] = overall.estimate
    figures["throughput_over_bare_all_low"], figures["throughput_over_bare_all_high"] = overall.low, overall.high
    figures["flop_utilisation"] = figures["flop_utilisation_10m"]
    return figures


def compare(
    corpus: Corpus, folder: Path, name: str, shape: tuple[int, int, int], rounds: int, peak: float
) -> tuple[dict[str, object], list[float]]:
    """Time a size: seconds a step of both arms in turn, their ratio with its interval, and the utilisation."""
    hidden, layers, heads = shape
    config = TransformerConfig(
        vocab_size=VOCAB, hidden_size=hidden, num_layers=layers, num_heads=heads, max_positions=CONTEXT
    )
    steps = (rounds + WARM_UP) * STEPS_A_ROUND
    arms: dict[str, Iterator[object]] = {
        "library": library_steps(corpus, folder / name, config, steps),
        "bare": bare_steps(corpus, config, steps),
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(rounds + WARM_UP):
        # The order within a pair alternates, so that neither arm always runs on the other's warm cache.
        for arm in sorted(arms, reverse=number % 2 == 1):
            started = time.perf_counter()
            for _ in range(STEPS_A_ROUND):
                next(arms[arm])
            if number >= WARM_UP:
                seconds[arm].append((time.perf_counter() - started) / STEPS_A_ROUND)
    ratio = paired_ratio(seconds["bare"], seconds["library"])
    step = median_interval(seconds["library"]).estimate
    tokens_per_second = BATCH * CONTEXT / step
    work = 3 * flops_per_token(config, CONTEXT) * tokens_per_second
    figures: dict[str, object] = {
        f"parameters_{name}": num_parameters(config).total,
        f"tokens_per_second_{name}": tokens_per_second,
        f"throughput_over_bare_{name}": ratio.estimate,
        f"throughput_over_bare_{name}_low": ratio.low,
        f"throughput_over_bare_{name}_high": ratio.high,
        f"gemm_peak_gflops_{name}": peak / 1e9,
        f"flop_utilisation_{name}": work / peak,
    }
    return figures, [b / a for a, b in zip(seconds["library"], seconds["bare"], strict=True)]


def library_steps(corpus: Corpus, run_directory: Path, config: TransformerConfig, steps: int) -> Iterator[object]:
    """Yield after each step of the library's loop."""
    settings = LoopConfig(steps=steps + 1, checkpoint_every=0)
    module = LanguageModel(config, seed=0)
    parallel = Parallel(torch.device("cpu"))
    batches = PackedBatches(corpus.train, batch_size=BATCH, context=CONTEXT, seed=0)
    with Run.open(run_directory, config=settings, recipe="benchmark") as run:
        yield from train(
            module,
            loss=partial(next_token_loss, device=parallel.device),
            batches=batches.batch,
            optimisers=build_optimisers(module, OptimiserConfig()),
            run=run,
            settings=settings,
            seed=0,
            parallel=parallel,
        )


def bare_steps(corpus: Corpus, config: TransformerConfig, steps: int) -> Iterator[object]:
    """Yield after each step of a loop as one would write it by hand."""
    model = LanguageModel(config, seed=0)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    gains = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), fused=True)
    tokens, draws = corpus.train.tokens, generator(0, "benchmark")
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        starts = draws.integers(0, len(tokens) - CONTEXT - 1, BATCH)
        windows = np.stack([tokens[start : start + CONTEXT + 1] for start in starts]).astype(np.int64)
        batch = torch.from_numpy(windows)
        logits = model(batch[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        yield loss.item()


def gemm_peak(repeats: int, size: int = 1536) -> float:
    """Return the best rate in FLOP/s of a square fp32 matrix product on all threads."""
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=draws) for _ in range(2))
    product: Callable[[], torch.Tensor] = partial(torch.mm, a, b)
    product()
    best = math.inf
    for _ in range(repeats):
        started = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


if __name__ == "__main__":
    run_benchmark("train", measure)
