"""How the tokens of a step are shared out between decoding, drafts and prompts, and what pace that guarantees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from forethought.core.config import config
from forethought.decode.request import Request


@config
class SchedulerConfig:
    """How much runs at once; names as vLLM users know them.

    `max_model_len` bounds a request, prompt and output together; `max_num_seqs` how many requests run at once, and
    `max_num_batched_tokens` how many tokens, drafted ones included, a step computes. A prompt is computed in chunks
    beside decoding, or, without `enable_chunked_prefill`, once all of it fits beside what decodes. It always gets half
    of the step that the decoding requests' own tokens leave, and all of it but room for `num_speculative_tokens` a
    request, the longest draft that is scheduled. `max_num_prefill_tokens` bounds the prompt tokens of a step in which
    something decodes, and so the pause that a long prompt puts between two tokens of others.

    Raises:
        ConfigError: a field is unknown or out of range, or contradicts another.
    """

    max_model_len: Annotated[int, Field(ge=2)]
    max_num_seqs: Annotated[int, Field(ge=1)] = 256
    max_num_batched_tokens: Annotated[int, Field(ge=1)] = 2048
    num_speculative_tokens: Annotated[int, Field(ge=0)] = 0
    max_num_prefill_tokens: Annotated[int, Field(ge=1)] | None = None
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True

    @model_validator(mode="after")
    def _fit_together(self) -> SchedulerConfig:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}: "
                "every running request needs one token a step"
            )
        if self.enable_chunked_prefill:
            return self
        if self.max_num_batched_tokens < self.max_model_len:
            raise ValueError(
                f"without enable_chunked_prefill a whole prompt is one step, so max_num_batched_tokens "
                f"{self.max_num_batched_tokens} must reach max_model_len {self.max_model_len}"
            )
        if self.max_num_prefill_tokens is not None:
            raise ValueError("max_num_prefill_tokens needs enable_chunked_prefill: a whole prompt cannot be bounded")
        return self


@dataclass(frozen=True)
class SchedulerCounts:
    """Where the scheduler stands; prefix queries and hits are tokens of requests that were admitted, first time only.

    `num_pages_cached` of the free pages hold a prefix that may still be matched.
    """

    num_waiting: int
    num_running: int
    num_pages_used: int
    num_pages_free: int
    num_pages_cached: int
    num_prefix_queries: int
    num_prefix_hits: int
    num_preemptions: int


def prefill_limit(settings: SchedulerConfig, num_decoding: int) -> int:
    """Return how many prompt tokens a step may compute beside `num_decoding` requests that decode."""
    room = settings.max_num_batched_tokens - num_decoding
    if num_decoding == 0 or not settings.enable_chunked_prefill:
        return room
    # Half at least, rounded up: with max_num_seqs <= max_num_batched_tokens that is one token at the very least.
    limit = max(room - room // 2, room - num_decoding * settings.num_speculative_tokens)
    return min(limit, settings.max_num_prefill_tokens or limit)


def step_bound(settings: SchedulerConfig, requests: Iterable[Request]) -> int:
    """Return in how many steps requests end that are served in this order, whatever arrives behind them.

    It is the sum of ceil(tokens / g) + remaining, with g the fewest prompt tokens a step computes for the earliest
    request: while all others decode and draft, half of what their own tokens leave. The earliest is never put back, so
    each step computes g tokens of its prompt or commits a token of its output.
    """
    room = settings.max_num_batched_tokens - settings.max_num_seqs + 1
    least = min(room - room // 2, settings.max_num_prefill_tokens or room)
    if not settings.enable_chunked_prefill:
        least = settings.max_model_len
    return sum(-(-len(request.tokens) // least) + max(request.remaining, 0) for request in requests)
