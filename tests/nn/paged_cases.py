"""Random texts in random pages, fed to an executor in random passes, with the dense model's logits beside them.

Shape suffixes: N rows, T tokens of a text, P pages of a text, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tests.nn.conftest import make_config, make_model
from torch import Tensor

from forethought.core.rng import generator
from forethought.nn import LanguageModel, RopeScaling, TransformerConfig
from forethought.nn.rows import PagedModel, Rows

SCALING = RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=32)


def random_config(seed: int) -> TransformerConfig:
    """A tiny shape of any family: odd sizes, shared key-value heads, biases, stretched rotary positions."""
    draw = generator(seed, "paged-config")
    family = str(draw.choice(["llama", "qwen2", "qwen3"]))
    heads, shared = int(draw.integers(1, 5)), int(draw.integers(1, 4))
    width = int(draw.choice([6, 8, 10, 16, 20]))
    changes: dict[str, Any] = {
        "vocab_size": int(draw.integers(5, 80)),
        "num_heads": heads * shared,
        "num_kv_heads": heads,
        "head_dim": width,
        # Not narrower: the norm of a few numbers that happen to be near 0 makes rounding errors of 1e-4 by itself.
        "hidden_size": heads * shared * -(-int(draw.integers(16, 50)) // (heads * shared)),
        "num_layers": int(draw.integers(1, 4)),
        "intermediate_size": int(draw.integers(1, 70)),
        "tie_embeddings": bool(draw.integers(2)),
        "rope_scaling": SCALING if draw.integers(2) else None,
        "rope_theta": float(draw.choice([100.0, 10000.0])),
    }
    if family == "llama":
        bias = bool(draw.integers(2))
        changes |= {"qkv_bias": bias, "attention_output_bias": bias, "mlp_bias": bool(draw.integers(2))}
    return make_config(family, **changes)


@dataclass
class Case:
    """Some texts, the pages that each has been given, and the model."""

    model: LanguageModel
    texts: list[NDArray[np.int32]]
    pages_SP: NDArray[np.int32]
    page_size: int
    num_pages: int

    def slots(self, text: int, positions: NDArray[np.int32]) -> NDArray[np.int32]:
        pages = self.pages_SP[text, positions // self.page_size]
        return (pages * self.page_size + positions % self.page_size).astype(np.int32)

    def dense(self, text: int) -> Tensor:
        """The logits (T, V) of the dense model."""
        with torch.inference_mode():
            return self.model(torch.from_numpy(self.texts[text].astype(np.int64))[None])[0].float()

    def rows(self, where: list[tuple[int, int]]) -> Rows:
        """Ordinary causal rows for (text, position) pairs, all wanted."""
        text = np.array([each[0] for each in where], dtype=np.int32)
        positions = np.array([each[1] for each in where], dtype=np.int32)
        slots = [self.slots(t, positions[i : i + 1])[0] for i, t in enumerate(text)]
        return Rows(
            tokens_N=np.array([self.texts[t][p] for t, p in where], dtype=np.int32),
            positions_N=positions,
            slots_N=np.array(slots, dtype=np.int32),
            sequence_N=text,
            visible_N=positions + 1,
            pages_SP=self.pages_SP,
            logits_M=np.arange(len(where), dtype=np.int32),
        )


def make_case(
    model: LanguageModel, seed: int, *, num_texts: int | None = None, longest: int = 40, page_size: int | None = None
) -> Case:
    """Texts of random lengths in pages that lie in random order; entries of pages that no text needs are -1."""
    draw = generator(seed, "paged-case")
    count = int(draw.integers(1, 4)) if num_texts is None else num_texts
    size = int(draw.choice([1, 2, 3, 5, 8, 16, 24, 32])) if page_size is None else page_size
    lengths = [int(draw.integers(1, longest + 1)) for _ in range(count)]
    texts = [draw.integers(0, model.config.vocab_size, length).astype(np.int32) for length in lengths]
    needed = [-(-length // size) for length in lengths]
    num_pages = sum(needed) + int(draw.integers(1, 8)) + 40 // size
    order = draw.permutation(num_pages).astype(np.int32)
    pages_SP = np.full((count, max(needed)), -1, dtype=np.int32)
    for text, pages in enumerate(needed):
        pages_SP[text, :pages], order = order[:pages], order[pages:]
    return Case(model, texts, pages_SP, size, num_pages)


def random_passes(case: Case, seed: int) -> list[list[tuple[int, int]]]:
    """Every position of every text, in passes that mix texts and cut them anywhere; rows of a pass in any order."""
    draw = generator(seed, "paged-passes")
    done, passes = [0] * len(case.texts), []
    while any(at < len(text) for at, text in zip(done, case.texts, strict=True)):
        where: list[tuple[int, int]] = []
        for text, tokens in enumerate(case.texts):
            take = min(int(draw.integers(0, 20)), len(tokens) - done[text])
            where += [(text, done[text] + i) for i in range(take)]
            done[text] += take
        if where:
            passes.append([where[i] for i in draw.permutation(len(where))])
    return passes


def feed(executor: PagedModel, case: Case, passes: list[list[tuple[int, int]]]) -> list[Tensor]:
    """The logits (T, V) of every text after these passes."""
    out = [torch.full((len(text), case.model.config.vocab_size), torch.nan) for text in case.texts]
    for where in passes:
        logits_NV = executor.logits(case.rows(where))
        for (text, position), row in zip(where, logits_NV, strict=True):
            out[text][position] = row
    return out


def one_by_one(case: Case) -> list[list[tuple[int, int]]]:
    return [[(text, position)] for text, tokens in enumerate(case.texts) for position in range(len(tokens))]


@dataclass
class Tree:
    """Rows of a token tree behind the first `stem` tokens of text 0, and what the dense model says of them."""

    rows: Rows
    stem: int
    expected_NV: Tensor


def random_tree(case: Case, seed: int) -> Tree:
    """A tree of up to 12 tokens whose slots are any free ones; the rows of a node's ancestors are its extras."""
    draw = generator(seed, "paged-tree")
    stem, count = int(draw.integers(0, len(case.texts[0]) + 1)), int(draw.integers(1, 13))
    taken = {int(s) for t, text in enumerate(case.texts) for s in case.slots(t, np.arange(len(text), dtype=np.int32))}
    free = [slot for slot in range(case.num_pages * case.page_size) if slot not in taken]
    slots = np.array([free[i] for i in draw.permutation(len(free))[:count]], dtype=np.int32)
    count = len(slots)
    parents = [int(draw.integers(-1, i)) for i in range(count)]
    lines = [[i] for i in range(count)]
    for i, parent in enumerate(parents):
        lines[i] = [*(lines[parent] if parent >= 0 else []), i]
    tokens = draw.integers(0, case.model.config.vocab_size, count).astype(np.int32)
    extra = np.full((count, max(len(line) for line in lines) + 2), -1, dtype=np.int32)
    for i, line in enumerate(lines):
        extra[i, : len(line)] = slots[line]
        extra[i] = np.roll(extra[i], int(draw.integers(0, 3)))
    order = draw.permutation(count)
    rows = Rows(
        tokens_N=tokens[order],
        positions_N=np.array([stem + len(lines[i]) - 1 for i in order], dtype=np.int32),
        slots_N=slots[order],
        sequence_N=np.zeros(count, dtype=np.int32),
        visible_N=np.full(count, stem, dtype=np.int32),
        pages_SP=case.pages_SP,
        logits_M=np.arange(count, dtype=np.int32),
        extra_NE=extra[order],
    )
    mask = torch.zeros(stem + count, stem + count, dtype=torch.bool)
    mask[:stem, :stem] = torch.ones(stem, stem, dtype=torch.bool).tril()
    mask[stem:, :stem] = True
    for i, line in enumerate(lines):
        mask[stem + i, [stem + each for each in line]] = True
    positions = torch.tensor([*range(stem), *(stem + len(line) - 1 for line in lines)])
    everything = torch.from_numpy(np.concatenate([case.texts[0][:stem], tokens]).astype(np.int64))[None]
    with torch.inference_mode():
        logits = case.model(everything, mask=mask, positions=positions)[0, stem:].float()
    return Tree(rows, stem, logits[torch.from_numpy(order)])


def close(actual: Tensor, expected: Tensor) -> bool:
    """Within 1e-5 of the largest logit, or of 1 where that is smaller; never true of what is no number."""
    scale = max(1.0, expected.abs().max().item())
    return actual.shape == expected.shape and (actual - expected).abs().max().item() <= 1e-5 * scale


def random_case(seed: int) -> Case:
    return make_case(make_model(random_config(seed), seed), seed)
