"""Processors against the same arithmetic done token by token, for every row of a draft."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forethought.core.rng import generator
from forethought.decode import SamplingParams
from forethought.decode.law.processors import Processors, forbid, processors_for

SIZE = 11
EOS = (4, 99)
tokens = st.lists(st.integers(0, SIZE - 1), max_size=8)


def one_row(
    logits: list[float], prompt: Sequence[int], output: Sequence[int], params: SamplingParams, mask: np.ndarray | None
) -> list[float]:
    """One row in vLLM's order: bias, min_tokens, mask, then the three penalties."""
    ends = {*params.stop_token_ids, *(() if params.ignore_eos else EOS)}
    out = []
    for token, value in enumerate(logits):
        value = np.float32(value) + np.float32((params.logit_bias or {}).get(token, 0.0))
        if len(output) < params.min_tokens and token in ends:
            value = np.float32(-math.inf)
        if mask is not None and not mask[token]:
            value = np.float32(-math.inf)
        if token in prompt or token in output:
            ratio = np.float32(params.repetition_penalty)
            value = value / ratio if value > 0 else value * ratio
        count = list(output).count(token)
        value = value - np.float32(params.frequency_penalty) * np.float32(count)
        out.append(float(value - np.float32(params.presence_penalty) * np.float32(count > 0)))
    return out


@settings(deadline=None, max_examples=200)
@given(
    tokens.filter(bool), tokens, tokens, tokens, st.booleans(), st.booleans(), st.integers(0, 12),
    st.sampled_from([1.0, 1.3, 0.7]), st.sampled_from([0.0, 0.9, -1.1]), st.sampled_from([0.0, 0.35]),
    st.dictionaries(st.integers(0, SIZE - 1), st.floats(-100, 100, width=32), max_size=3),
)  # fmt: skip
def test_every_row_is_what_its_own_text_makes_of_it(
    prompt: list[int], first: list[int], second: list[int], draft: list[int], masked: bool, ignore_eos: bool,
    min_tokens: int, repetition: float, presence: float, frequency: float, bias: dict[int, float],
) -> None:  # fmt: skip
    params = SamplingParams(
        max_tokens=64, min_tokens=min_tokens, repetition_penalty=repetition, presence_penalty=presence,
        frequency_penalty=frequency, logit_bias=bias, ignore_eos=ignore_eos, stop_token_ids=(2,),
    )  # fmt: skip
    processors = Processors(params, prompt, EOS, SIZE)
    rng = generator(1, "test.processors")
    for output in (first, first + second):
        raw = torch.from_numpy(rng.standard_normal((len(draft) + 1, SIZE))).float()
        before = raw.clone()
        masks = [rng.random(SIZE) < 0.7 for _ in range(len(draft) + 1)] if masked else None
        made = processors(raw, output, draft, masks)
        assert torch.equal(raw, before)
        for row in range(len(draft) + 1):
            text = [*output, *draft[:row]]
            expected = one_row(raw[row].tolist(), prompt, text, params, masks[row] if masks else None)
            np.testing.assert_allclose(made[row].numpy(), expected, rtol=1e-6, atol=1e-6)


def rows_alone_and_together(params: SamplingParams) -> tuple[Tensor, Tensor]:
    raw = torch.from_numpy(generator(3, "test.rows").standard_normal((4, SIZE))).float()
    prompt, output, draft = [1, 2, 2], [3, 4], [5, 3, 5]
    together = Processors(params, prompt, EOS, SIZE)(raw, output, draft)
    alone = [Processors(params, prompt, EOS, SIZE)(raw[r : r + 1], [*output, *draft[:r]], []) for r in range(4)]
    return torch.cat(alone), together


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.7, logit_bias={3: 2.0}),
        SamplingParams(min_tokens=4, repetition_penalty=0.8),
    ],
)
def test_a_speculated_row_is_bit_for_bit_the_plain_one(params: SamplingParams) -> None:
    alone, together = rows_alone_and_together(params)
    assert torch.equal(alone, together)


def test_who_asks_for_nothing_has_no_processors() -> None:
    plain = SamplingParams(temperature=0.7, top_k=3, seed=5, logprobs=3, stop_token_ids=(1,))
    assert processors_for(plain, [1], EOS, SIZE) is None
    assert processors_for(SamplingParams(logit_bias={}), [1], EOS, SIZE) is None
    for params in (
        SamplingParams(min_tokens=1),
        SamplingParams(logit_bias={1: 1.0}),
        SamplingParams(repetition_penalty=1.1),
        SamplingParams(presence_penalty=0.1),
        SamplingParams(frequency_penalty=-0.1),
    ):
        assert processors_for(params, [1], EOS, SIZE) is not None


def test_masks_take_tokens_out() -> None:
    mask = np.array([True, False, True])
    assert forbid(torch.zeros(1, 3), [mask]).tolist() == [[0.0, -math.inf, 0.0]]
