"""What a request asks for, and the one function from logits to the law that tokens are drawn from.

A row of logits gives the same law to the last bit alone and among others, whatever the number of threads: nothing here
sums along the vocabulary but softmax and cumulative sums, which walk each row by itself.

Shape suffixes: V vocabulary, M the likeliest tokens in falling order, 1 a kept dimension; a leading `...` stands for
any batch of rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from forethought.core.config import config
from forethought.core.errors import ConfigError, ForethoughtError
from forethought.core.rng import derive_seed
from forethought.nn.native.law import LawFilters, has_laws, softmax

MAX_LOGPROBS = 20


@config
class SamplingParams:
    """How one request samples and when it stops; names and defaults as vLLM users know them, except `seed`.

    Every field is honoured. `temperature` 0 is greedy. Filters apply in the order temperature, min_p, top_k, top_p.
    `top_k` 0 or -1 and `top_p` 1 mean all tokens. `max_tokens` None means until the model's context is full; before
    `min_tokens` no end-of-text or stop token can come and no stop string ends the text.
    `seed` is 0 unless given, so a request repeats; give another for another sample. `n` samples differ in their seeds.
    A stop token or the end-of-text token stays in the token ids and out of the text; a stop string ends the text before
    its first character; `include_stop_str_in_output` keeps either in the text.
    `repetition_penalty` divides positive logits of tokens in prompt or output and multiplies negative ones;
    `presence_penalty` and `frequency_penalty` are taken off those of tokens in the output, once and for every
    occurrence; `logit_bias` {token: bias} is added. `logprobs` asks for the log-probability of every token and of that
    many likeliest ones, before any of these. `speculate` False decodes this request plainly; its law is the same.

    Raises:
        ConfigError: a field is unknown or out of range; the message names it and the nearest known name.
    """

    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    n: Annotated[int, Field(ge=1, le=16384)] = 1
    min_tokens: Annotated[int, Field(ge=0)] = 0
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    logit_bias: Mapping[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100.0, le=100.0)]] | None = (
        dataclasses.field(default=None, hash=False)
    )
    speculate: bool = True

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, stop: Any) -> Any:
        return (stop,) if isinstance(stop, str) else () if stop is None else stop

    @field_validator("stop", mode="after")
    @classmethod
    def _no_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("a stop string must not be empty")
        return stop

    @model_validator(mode="after")
    def _room_for_min_tokens(self) -> SamplingParams:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")
        return self


def sample_params(params: SamplingParams, index: int) -> SamplingParams:
    """Return what sample `index` of the `n` is decoded with: n is 1, and all but the first have seeds of their own."""
    seed = params.seed if index == 0 else derive_seed(params.seed, "decode.sample", index=index)
    return params if params.n == 1 and index == 0 else dataclasses.replace(params, n=1, seed=seed)


def check_vocabulary(params: SamplingParams, vocabulary_size: int) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        ConfigError: logit_bias or stop_token_ids names one.
    """
    for name, tokens in (("logit_bias", params.logit_bias or ()), ("stop_token_ids", params.stop_token_ids)):
        unknown = next((token for token in tokens if token >= vocabulary_size), None)
        if unknown is not None:
            raise ConfigError(f"{name} names token {unknown}; the model knows 0 to {vocabulary_size - 1}")


def distribution(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """Return the law (float64, sums to 1) that a token is drawn from, for logits (..., V) of any float type.

    Temperature 0 gives a point mass on the largest logit, the lowest id among equals. At most top_k tokens survive
    top_k, and equals at its edge are taken in the order of their ids, so that target and draft filter alike.

    Raises:
        ForethoughtError: the logits hold NaN or +inf, or a row is -inf everywhere.
    """
    if uses_kernels(logits_V, params):
        return _by_kernels(logits_V, params)
    logits_V = logits_V.detach().to(torch.float64, copy=True)
    largest_V1 = logits_V.amax(dim=-1, keepdim=True)
    if not bool(torch.isfinite(largest_V1).all()):
        raise ForethoughtError("the model gave logits without a finite largest value; its weights or input are damaged")
    if params.temperature == 0.0:
        return point_mass(logits_V.argmax(dim=-1), logits_V.shape[-1])
    scaled_V = logits_V.sub_(largest_V1).div_(params.temperature)
    if params.min_p > 0.0:
        scaled_V.masked_fill_(scaled_V < math.log(params.min_p), -math.inf)
    if 0 < params.top_k < scaled_V.shape[-1]:
        edge_V1 = _largest(scaled_V, params.top_k)[..., -1:]
        scaled_V.masked_fill_(~_leading(scaled_V, edge_V1, params.top_k), -math.inf)
    law_V = torch.softmax(scaled_V, dim=-1)
    return law_V if params.top_p == 1.0 else _nucleus(law_V, params)


def uses_kernels(logits_V: Tensor, params: SamplingParams) -> bool:
    """Return whether the law of such logits comes from the native kernels."""
    return params.temperature > 0.0 and logits_V.device.type == "cpu" and logits_V.numel() > 0 and has_laws()


def law_filters(params: SamplingParams) -> LawFilters:
    """Return the filters as the native kernels take them."""
    return LawFilters(params.min_p, params.top_k, params.top_p)


def point_mass(tokens: Tensor | Sequence[int], vocabulary_size: int) -> Tensor:
    """Return the laws (..., V) in float64 that put all mass on the given tokens (...)."""
    tokens = torch.as_tensor(tokens, dtype=torch.int64)
    law_V = torch.zeros(*tokens.shape, vocabulary_size, dtype=torch.float64, device=tokens.device)
    return law_V.scatter_(-1, tokens.unsqueeze(-1), 1.0)


def _by_kernels(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """What `distribution` computes with PyTorch, up to the last bits and several times as fast."""
    rows_MV = logits_V.detach().reshape(-1, logits_V.shape[-1])
    if rows_MV.dtype not in (torch.float32, torch.float64):
        rows_MV = rows_MV.to(torch.float64)
    return softmax(rows_MV, params.temperature, law_filters(params)).view(logits_V.shape)


def _nucleus(law_V: Tensor, params: SamplingParams) -> Tensor:
    """Keep the fewest tokens that together hold top_p of the mass."""
    size = law_V.shape[-1]
    likeliest_M = _largest(law_V, params.top_k if 0 < params.top_k < size else size)
    mass_M = likeliest_M.cumsum(dim=-1)
    # A token stays while those before it do not yet hold top_p; the first always does.
    last_1 = (mass_M[..., :-1] < params.top_p * mass_M[..., -1:]).sum(dim=-1, keepdim=True)
    kept_V = _leading(law_V, likeliest_M.gather(-1, last_1), last_1 + 1)
    return law_V.masked_fill_(~kept_V, 0.0).div_(mass_M.gather(-1, last_1))


def _largest(values_V: Tensor, count: int) -> Tensor:
    """Return the `count` largest values of each row in falling order."""
    if 8 * count <= values_V.shape[-1]:
        return torch.topk(values_V, count, dim=-1).values
    if values_V.device.type == "cpu":
        # NumPy's vectorised sort of values; torch's carries indices along and takes twenty times as long.
        return torch.from_numpy(np.sort(values_V.numpy(), axis=-1)).flip(-1)[..., :count]
    return torch.sort(values_V, dim=-1, descending=True).values[..., :count]


def _leading(values_V: Tensor, edge_V1: Tensor, count: Tensor | int) -> Tensor:
    """Mark the `count` largest values of each row, `edge` the least of them; of its equals those of the lowest ids."""
    kept_V = values_V >= edge_V1
    if bool((kept_V.sum(dim=-1, keepdim=True) > count).any()):
        above_V, equal_V = values_V > edge_V1, values_V == edge_V1
        free_V1 = count - above_V.sum(dim=-1, keepdim=True)
        kept_V = above_V | (equal_V & (equal_V.cumsum(dim=-1) <= free_V1))
    return kept_V
