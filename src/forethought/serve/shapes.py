"""The answers, field by field, as OpenAI's clients read them; the emitted OpenAPI is made from these."""

from __future__ import annotations

from typing import Literal, NotRequired

# The typing module's own cannot be read by pydantic before Python 3.12.
from typing_extensions import TypedDict


class PromptDetails(TypedDict):
    """What is known of the prompts' tokens: how many were found in the prefix cache."""

    cached_tokens: int


class Usage(TypedDict):
    """Tokens read and written by the whole call."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Rejected(TypedDict):
    """A drafted token that the target did not keep."""

    id: int
    text: str


class Speculation(TypedDict):
    """How the tokens of a chunk came about (`return_speculation`).

    The first `num_accepted` of `token_ids` were drafted and kept, the others are the target's own. `source` says where
    the draft came from: "cache" was ready before the verdict it follows was known. `pieces` are the tokens' texts.
    """

    source: str
    token_ids: list[int]
    pieces: list[str]
    num_accepted: int
    rejected: list[Rejected]


class CompletionLogprobs(TypedDict):
    """Log-probabilities in the form of /v1/completions."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One text, or what is new of it; `finish_reason` is "stop", "length", or "abort" where the server closes."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    speculation: NotRequired[Speculation]


class Completion(TypedDict):
    """The answer of /v1/completions, and each chunk of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]


class TopLogprob(TypedDict):
    """One of the likeliest tokens."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TypedDict):
    """A token, its log-probability, and the likeliest ones in its place."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities in the form of /v1/chat/completions."""

    content: list[TokenLogprob]
    refusal: None


class ChatMessage(TypedDict):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    """One answer; `finish_reason` is "stop", "length", or "abort" where the server closes."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: str | int | None


class ChatCompletion(TypedDict):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(TypedDict):
    """What is new of an answer; the role comes first, alone."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChatChunkChoice(TypedDict):
    """What is new of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[str | int | None]
    speculation: NotRequired[Speculation]


class ChatChunk(TypedDict):
    """A chunk of the stream of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]


class ModelCard(TypedDict):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    """All models that are served: one."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(TypedDict):
    """Whether requests are taken: "ready", or why not."""

    status: str


class Version(TypedDict):
    """The version of the library."""

    version: str
