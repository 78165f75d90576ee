"""SamplingParams, and the law that logits become: filters against a sort, and bit for bit the same in any batch."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forethought.core.config import from_dict, to_dict
from forethought.core.errors import ConfigError, ForethoughtError
from forethought.core.rng import derive_seed, generator
from forethought.decode import SamplingParams, distribution, draw
from forethought.decode.law.sampling import check_vocabulary, sample_params

KINDS = [
    SamplingParams(),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=0.8, top_k=5),
    SamplingParams(temperature=0.8, top_p=0.9),
    SamplingParams(temperature=1.3, top_k=40, top_p=0.8, min_p=0.01),
    SamplingParams(min_p=0.1),
    SamplingParams(top_p=0.5, min_p=0.2),
]


@pytest.fixture(params=["as it is", "without kernels"], autouse=True)
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds with the native kernels, where they can be built, and with PyTorch alone."""
    if request.param == "without kernels":
        monkeypatch.setattr("forethought.decode.law.sampling.has_laws", lambda: False)
        monkeypatch.setattr("forethought.nn.native.law.has_laws", lambda: False)


def logits_of(size: int, num_rows: int, *, ties: bool = False) -> Tensor:
    values = 3.0 * generator(1, "test.logits", size).standard_normal((num_rows, size))
    return torch.from_numpy(np.round(values) if ties else values).float()


@pytest.mark.parametrize("params", KINDS)
@pytest.mark.parametrize("size", [2, 3, 17, 257, 1000, 4096, 5003])
def test_a_row_has_one_law_alone_and_in_any_batch(params: SamplingParams, size: int) -> None:
    logits = logits_of(size, 9, ties=size % 2 == 0)
    together = distribution(logits, params)
    for row in range(9):
        assert torch.equal(distribution(logits[row], params), together[row])
        assert torch.equal(distribution(logits[row : row + 1], params)[0], together[row])
    assert torch.equal(distribution(logits[2:7], params), together[2:7])
    wide = torch.empty(9, size + 5)
    wide[:, :size] = logits
    assert torch.equal(distribution(wide[::3, :size], params), together[::3])
    assert torch.equal(distribution(logits.reshape(3, 3, size), params), together.reshape(3, 3, size))


@pytest.mark.parametrize("params", KINDS)
def test_a_law_does_not_depend_on_the_number_of_threads(params: SamplingParams) -> None:
    logits = logits_of(70_001, 3)
    before = torch.get_num_threads()
    laws = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            laws += [distribution(logits, params), distribution(logits[1], params).expand(3, -1)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(law[1], laws[0][1]) for law in laws)


def test_logits_stay_as_they_are() -> None:
    for dtype in (torch.float32, torch.float64):
        logits = logits_of(50, 2).to(dtype)
        for params in KINDS:
            before = logits.clone()
            distribution(logits, params)
            assert torch.equal(logits, before)


def reference_law(logits: list[float], params: SamplingParams) -> list[float]:
    """The filters one after the other, on a sorted list."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    weights = {token: math.exp((logits[token] - logits[order[0]]) / params.temperature) for token in order}
    kept = [token for token in order if weights[token] >= params.min_p]
    if params.top_k > 0:
        kept = kept[: params.top_k]
    total, mass, nucleus = sum(weights[token] for token in kept), 0.0, []
    for token in kept:
        if nucleus and mass >= params.top_p * total:
            break
        nucleus.append(token)
        mass += weights[token]
    return [weights[token] / mass if token in nucleus else 0.0 for token in range(len(logits))]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(-12, 12), min_size=2, max_size=40),
    st.sampled_from([0, -1, 1, 2, 5, 30]),
    st.sampled_from([1.0, 0.97, 0.6, 0.13]),
    st.sampled_from([0.0, 0.013, 0.21]),
    st.sampled_from([0.5, 1.0, 2.3]),
)
def test_filters_against_a_sorted_list(
    values: list[int], top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = [value / 3 for value in values]
    law = distribution(torch.tensor(logits, dtype=torch.float64), params)
    np.testing.assert_allclose(law.numpy(), reference_law(logits, params), rtol=0, atol=1e-12)
    assert abs(float(law.sum()) - 1.0) <= 1e-12


def test_equals_at_an_edge_are_taken_in_the_order_of_their_ids() -> None:
    for params in (SamplingParams(top_k=3), SamplingParams(top_p=0.6)):
        law = distribution(torch.zeros(5), params)
        assert law.nonzero().flatten().tolist() == [0, 1, 2]
    mixed = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0], [2.0, 0.0, 0.0, 0.0, 0.0]])
    law = distribution(mixed, SamplingParams(top_k=2))
    assert [row.nonzero().flatten().tolist() for row in law] == [[1, 2], [0, 1]]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_bad_logit_is_an_error(value: float) -> None:
    logits = torch.zeros(3, 7)
    logits[1, 2] = value
    for params in KINDS:
        with pytest.raises(ForethoughtError, match="damaged"):
            distribution(logits, params)
    with pytest.raises(ForethoughtError, match="damaged"):
        distribution(torch.full((4,), -math.inf), SamplingParams())


def test_draw_inverts_the_cumulative_law() -> None:
    law = distribution(logits_of(100, 4), SamplingParams(top_k=7))
    for uniform in np.linspace(0, 1, 50, endpoint=False).tolist():
        for row, token in zip(law, draw(law, [uniform] * 4), strict=True):
            assert row[:token].sum() <= uniform + 1e-12
            assert uniform < row[: token + 1].sum() + 1e-12
            assert row[token] > 0


def test_names_defaults_and_order_are_those_users_know() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
    assert fields == {
        "max_tokens": 16, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0, "stop": (),
        "stop_token_ids": (), "ignore_eos": False, "include_stop_str_in_output": False, "n": 1, "min_tokens": 0,
        "logprobs": None, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "logit_bias": None, "speculate": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"n": 0}, "n:"),
        ({"n": 1.5}, "n:"),
        ({"logprobs": 21}, "logprobs:"),
        ({"logprobs": -1}, "logprobs:"),
        ({"min_tokens": -1}, "min_tokens:"),
        ({"min_tokens": 17}, "min_tokens 17 is more than max_tokens 16"),
        ({"repetition_penalty": 0.0}, "repetition_penalty:"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty:"),
        ({"presence_penalty": 2.5}, "presence_penalty:"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty:"),
        ({"logit_bias": {3: 101.0}}, "logit_bias"),
        ({"logit_bias": {-3: 1.0}}, "logit_bias"),
        ({"logit_bias": [1, 2]}, "logit_bias"),
        ({"prompt_logprobs": 3}, "prompt_logprobs"),
        ({"presense_penalty": 0.5}, "Did you mean 'presence_penalty'"),
        ({"max_token": 3}, "Did you mean 'max_tokens'"),
        ({"seed": 1 << 64}, "seed:"),
    ],
)
def test_what_cannot_be_honoured_is_one_clear_error(given_: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SamplingParams(**given_)  # pyright: ignore


def test_params_travel_as_json_and_serve_as_keys() -> None:
    params = SamplingParams(n=3, logit_bias={5: 1.5, 7: -100}, stop="x", logprobs=0, speculate=False)
    assert from_dict(SamplingParams, to_dict(params)) == params
    assert hash(params) == hash(from_dict(SamplingParams, to_dict(params)))
    assert params != dataclasses.replace(params, logit_bias={5: 1.5})


def test_samples_have_seeds_of_their_own() -> None:
    params = SamplingParams(n=4, seed=9, temperature=0.5)
    each = [sample_params(params, index) for index in range(4)]
    assert [one.n for one in each] == [1] * 4
    assert each[0].seed == 9
    assert [one.seed for one in each[1:]] == [derive_seed(9, "decode.sample", index=index) for index in (1, 2, 3)]
    assert len({one.seed for one in each}) == 4
    assert all(dataclasses.replace(one, n=4, seed=9) == params for one in each)
    alone = SamplingParams(seed=9)
    assert sample_params(alone, 0) is alone


def test_tokens_outside_the_vocabulary_are_named() -> None:
    check_vocabulary(SamplingParams(logit_bias={9: 1.0}, stop_token_ids=(9,)), 10)
    with pytest.raises(ConfigError, match="logit_bias names token 10; the model knows 0 to 9"):
        check_vocabulary(SamplingParams(logit_bias={10: 1.0}), 10)
    with pytest.raises(ConfigError, match="stop_token_ids names token 12"):
        check_vocabulary(SamplingParams(stop_token_ids=(12,)), 10)
