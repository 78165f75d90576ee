"""The bodies that clients send: every field here is honoured, and every other one is refused by name."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, cast

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from forethought.core.errors import nearest
from forethought.serve.errors import ApiError

# Fields of OpenAI's API that this server does not have; what they are told apart for is the message.
NOT_OFFERED = frozenset(
    "audio best_of echo function_call functions metadata modalities moderation parallel_tool_calls prediction "
    "prompt_cache_key prompt_cache_retention reasoning_effort safety_identifier service_tier store suffix tool_choice "
    "tools user verbosity web_search_options".split()
)

_MAX_NAME = 64
_STEP = re.compile(r"\w+")
_MARKS = ("str", "int", "float")

Text: TypeAlias = Annotated[str, Field(max_length=1 << 22)]
Token: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 31)]
Tokens: TypeAlias = Annotated[list[Token], Field(fail_fast=True, min_length=1, max_length=1 << 20)]
StopString: TypeAlias = Annotated[str, Field(min_length=1, max_length=1024)]
StopStrings: TypeAlias = Annotated[list[StopString], Field(fail_fast=True, max_length=16)]
Penalty: TypeAlias = Annotated[float, Field(ge=-2.0, le=2.0)]


class Body(BaseModel):
    """What all bodies share: strict types, and no field that is not named."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """`include_usage` adds a last chunk with the usage of the whole request."""

    include_usage: bool = False


class JsonSchema(Body):
    """A named schema; output is always held to it, so `strict` may be left out."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: Annotated[str, Field(max_length=4096)] | None = None
    strict: Literal[True] | None = None


class TextFormat(Body):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON of one schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat: TypeAlias = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class GenerationBody(Body):
    """The fields of both routes. `top_k` to `return_speculation` are this server's own."""

    model: Annotated[str, Field(max_length=256)]
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    n: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stop: StopString | StopStrings | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]], Field(max_length=1024)] | None = None
    response_format: ResponseFormat | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100.0)] | None = None
    stop_token_ids: Annotated[list[Token], Field(fail_fast=True, max_length=64)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    speculate: bool | None = None
    return_speculation: bool | None = None

    @property
    def num_samples(self) -> int:
        """How many texts are wanted."""
        return self.n or 1

    @property
    def most_tokens(self) -> int | None:
        """How many tokens a text may have, or None where nothing was said."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens are wanted in each place, or None for no log-probabilities at all."""
        return None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=1 << 10)]
        | Tokens
        | Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=1 << 10)]
    )
    logprobs: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, texts or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        parts = [part for part in self.prompt if not isinstance(part, int)]
        return parts or [[token for token in self.prompt if isinstance(token, int)]]

    @property
    def num_samples(self) -> int:
        """How many texts are wanted."""
        return len(self.prompts) * (self.n or 1)

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens are wanted in each place, or None for no log-probabilities at all."""
        return self.logprobs


class TextPart(Body):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True, min_length=1, max_length=1 << 10)]

    def text(self) -> str:
        """Return the content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(GenerationBody):
    """POST /v1/chat/completions; `max_completion_tokens` is the newer name of `max_tokens`."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=1 << 12)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None

    @property
    def most_tokens(self) -> int | None:
        """How many tokens a text may have, or None where nothing was said."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens are wanted in each place, or None for no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


B = TypeVar("B", bound=Body)


def read_body(cls: type[B], content: bytes, *, depth: int) -> B:
    """Return a checked body.

    Raises:
        ApiError: 400; the message names the field, and never repeats what was sent for it.
    """
    value = _parsed(content)
    _check_depth(value, depth)
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    known = [field.alias or name for name, field in cls.model_fields.items()]
    for name in cast(dict[str, Any], value):
        if name not in known:
            raise _unknown(name, known)
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        raise _explained(error) from None


def _parsed(content: bytes) -> Any:
    try:
        return pydantic_core.from_json(content, allow_inf_nan=False)
    except ValueError as error:
        # The parser's own words tell the place, and nothing of the content.
        raise ApiError(400, f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from None


def _check_depth(value: Any, depth: int) -> None:
    level: list[Any] = [value]
    for _ in range(depth):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ApiError(400, f"the body is nested deeper than the {depth} levels that are taken", code="invalid_json")


def _inside(value: Any) -> list[Any]:
    is_object, is_list = isinstance(value, dict), isinstance(value, list)
    entries = cast(dict[str, Any], value).values() if is_object else cast(list[Any], value) if is_list else ()
    return [inner for inner in entries if isinstance(inner, dict | list)]


def _unknown(name: str, known: list[str]) -> ApiError:
    shown = name[:_MAX_NAME]
    if name in NOT_OFFERED:
        return ApiError(400, f"{shown}: this server does not offer this field", param=shown, code="unsupported_field")
    hint = nearest(shown, known)
    return ApiError(400, f"{shown!r} is no field of this request.{hint}", param=shown, code="unknown_field")


def _length(problem: ErrorDetails) -> int:
    return len(problem["loc"])


def _explained(error: ValidationError) -> ApiError:
    # Of a union's members the one that came furthest is the one that was meant.
    problem = max(error.errors(include_url=False, include_input=False, include_context=False), key=_length)
    # Between names and positions stand the marks of a union's members, which no client has written.
    steps = [str(step)[:_MAX_NAME] for step in problem["loc"]]
    where = ".".join(step for step in steps if _STEP.fullmatch(step) and step not in _MARKS)
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"{where}: this server does not offer this field", param=where, code="unsupported_field")
    if problem["type"] == "missing":
        return ApiError(400, f"{where} is required", param=where, code="missing_field")
    message = problem["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{where}: {message[:200]}", param=where, code="invalid_value")
