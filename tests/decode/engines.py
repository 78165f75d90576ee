"""Pairs of model directories for the engine's tests, and ways to run one and the same work on several engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.decode.conftest import make_pair

from forethought.core.rng import generator
from forethought.data.tokenizer import train_tokenizer
from forethought.decode import LLM, SamplingParams
from forethought.nn import save_language_model

VOCABULARY = 300
TEXTS = [
    f"the cat number {n} sat on mat {n * 7 % 13} and saw the dog run over the hill to the red house" for n in range(80)
]


def save_pair(folder: Path, *, seed: int = 0, noise: float = 0.15, positions: int = 256) -> tuple[Path, Path]:
    """Write a random target and its noisy copy as a draft, with one tokenizer, and return both directories."""
    tokenizer = train_tokenizer(TEXTS, VOCABULARY)
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    torch.set_num_threads(1)
    models = make_pair(VOCABULARY, seed, noise=noise, positions=positions)
    for name, model in zip(("target", "draft"), models, strict=True):
        save_language_model(model, folder / name, folder / "tokenizer", dtype=torch.float32)
    return folder / "target", folder / "draft"


def random_prompts(count: int, *, longest: int = 24, seed: int = 0) -> list[list[int]]:
    """Return prompts of 1 to `longest` random tokens."""
    rng = generator(seed, "test.engine.prompts")
    return [rng.integers(1, VOCABULARY, size=rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def as_prompts(token_lists: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Return token lists in the form that LLM takes."""
    return [{"prompt_token_ids": list(tokens)} for tokens in token_lists]


def tokens_of(
    llm: LLM, prompts: Sequence[Sequence[int]], params: SamplingParams | list[SamplingParams]
) -> list[list[int]]:
    """Return the tokens of the first sample of every prompt."""
    return [output.outputs[0].token_ids for output in llm.generate(as_prompts(prompts), params)]


def num_differences(left: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> int:
    """Return how many places of two lists of token lists differ, missing ones counted."""
    differing = 0
    for a, b in zip(left, right, strict=True):
        length = min(len(a), len(b))
        differing += int((np.asarray(a[:length]) != np.asarray(b[:length])).sum()) + abs(len(a) - len(b))
    return differing
