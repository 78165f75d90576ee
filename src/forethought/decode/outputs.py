"""What the engine gives back: updates while requests run, and whole results in the form that vLLM users know."""

from __future__ import annotations

from dataclasses import dataclass, field

from forethought.decode.draft import TokenLogprobs
from forethought.decode.statistics import Statistics


@dataclass(frozen=True)
class Update:
    """What one step brought for one sample of one request.

    `source` says where the judged draft came from, `rejected` which of its tokens the target did not keep,
    `num_cached_tokens` how much of the prompt was there already when the sample began. The last update of a sample has
    a `finish_reason`: "stop", "length", "abort" or "error" (with `error` saying why).
    """

    request_id: int
    index: int
    token_ids: list[int]
    text: str = ""
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    rejected: list[int] = field(default_factory=list[int])
    source: str = "none"
    num_accepted: int = 0
    num_cached_tokens: int = 0


@dataclass(frozen=True)
class Logprob:
    """The target's own log-probability of a token, its rank (1 is the likeliest) and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One sample: tokens, text, and why it ended ("stop", "length", "abort" or "error").

    `logprobs` has for each token a mapping from token id to Logprob: the likeliest ones asked for and the token itself.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    statistics: Statistics = field(default_factory=Statistics)


@dataclass
class RequestOutput:
    """A prompt and its samples, in the order of `n`; `num_cached_tokens` of the prompt did not have to be read."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    num_cached_tokens: int = 0


@dataclass(frozen=True)
class StreamChunk:
    """A piece of one sample while it is generated: the place of its prompt in the call, and what is new."""

    prompt_index: int
    index: int
    token_ids: list[int]
    text: str
    finish_reason: str | None = None
