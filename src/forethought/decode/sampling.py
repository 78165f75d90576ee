"""What a request asks for, and the one function from logits to the law that tokens are drawn from.

Shape suffixes: V vocabulary; a leading `...` stands for any batch of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from forethought.core.config import config
from forethought.core.errors import ForethoughtError


@config
class SamplingParams:
    """How one request samples and when it stops; names and defaults as vLLM users know them, except `seed`.

    Every field is honoured. `temperature` 0 is greedy. Filters apply in the order temperature, min_p, top_k, top_p.
    `top_k` 0 or -1 and `top_p` 1 mean all tokens. `max_tokens` None means until the model's context is full.
    `seed` is 0 unless given, so a request repeats; give another for another sample. A stop token or the end-of-text
    token stays in the token ids and out of the text; a stop string ends the text before its first character;
    `include_stop_str_in_output` keeps either in the text.

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


def distribution(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """Return the law (float64, sums to 1) that a token is drawn from, for logits (..., V) of any float type.

    Temperature 0 gives a point mass on the largest logit, the lowest id among equals. At most top_k tokens survive
    top_k, and equals at its edge are taken in the order of their ids, so that target and draft filter alike.

    Raises:
        ForethoughtError: the logits hold NaN or +inf, or a row is -inf everywhere.
    """
    logits_V = logits_V.detach().to(torch.float64)
    largest_V1 = logits_V.amax(dim=-1, keepdim=True)
    if not bool(torch.isfinite(largest_V1).all()):
        raise ForethoughtError("the model gave logits without a finite largest value; its weights or input are damaged")
    if params.temperature == 0.0:
        return point_mass(logits_V.argmax(dim=-1), logits_V.shape[-1])
    probabilities_V = torch.softmax((logits_V - largest_V1) / params.temperature, dim=-1)
    if params.min_p > 0.0:
        least_V1 = params.min_p * probabilities_V.amax(dim=-1, keepdim=True)
        probabilities_V = probabilities_V.masked_fill(probabilities_V < least_V1, 0.0)
    if 0 < params.top_k < logits_V.shape[-1] or params.top_p < 1.0:
        probabilities_V = _keep_top(probabilities_V, params.top_k, params.top_p)
    return probabilities_V / probabilities_V.sum(dim=-1, keepdim=True)


def point_mass(tokens: Tensor | Sequence[int], vocabulary_size: int) -> Tensor:
    """Return the laws (..., V) in float64 that put all mass on the given tokens (...)."""
    tokens = torch.as_tensor(tokens, dtype=torch.int64)
    law_V = torch.zeros(*tokens.shape, vocabulary_size, dtype=torch.float64, device=tokens.device)
    return law_V.scatter_(-1, tokens.unsqueeze(-1), 1.0)


def _keep_top(probabilities_V: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the top_k most likely tokens, then of these the fewest that together hold top_p of their mass."""
    sorted_V, order_V = torch.sort(probabilities_V, dim=-1, descending=True, stable=True)
    if top_k > 0:
        sorted_V[..., top_k:] = 0.0
    if top_p < 1.0:
        total_V1 = sorted_V.sum(dim=-1, keepdim=True)
        mass_before_V = sorted_V.cumsum(dim=-1) - sorted_V
        sorted_V = sorted_V.masked_fill(mass_before_V >= top_p * total_V1, 0.0)
    return torch.zeros_like(probabilities_V).scatter_(-1, order_V, sorted_V)
