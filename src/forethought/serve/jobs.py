"""From a checked body to what the engine is asked: tokens, SamplingParams, constraints, and the price, all bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forethought.core.errors import ConfigError, InputError, MissingExtraError
from forethought.core.faults import fault
from forethought.decode.law.constraint import Constraint
from forethought.decode.law.sampling import SamplingParams, sample_params
from forethought.serve.engine import ServedModel
from forethought.serve.errors import ApiError, bad_field
from forethought.serve.fields import ChatBody, CompletionBody, GenerationBody, JsonSchemaFormat, TextFormat
from forethought.serve.limits import Limits, request_cost
from forethought.serve.template import ChatTemplate, prompt_tokens

DEFAULT_COMPLETION_TOKENS = 16
_SHORT = 4096
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_SAME_NAME = (
    "temperature top_p top_k min_p min_tokens repetition_penalty presence_penalty frequency_penalty ignore_eos "
    "include_stop_str_in_output speculate"
).split()


@dataclass(frozen=True)
class Job:
    """One call, ready for the engine: choice c is sample c % n of prompt c // n."""

    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    schema: Mapping[str, Any] | None
    stream: bool
    include_usage: bool
    show_speculation: bool

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(prompt) for prompt in self.prompts)

    @property
    def num_choices(self) -> int:
        """How many texts the call brings."""
        return len(self.prompts) * self.params.n


class JobMaker:
    """Turns bodies into jobs for one model at a time; `next_seed` gives the seed of a request that names none."""

    def __init__(self, limits: Limits, template: str | None, next_seed: Callable[[], int]) -> None:
        self._limits, self._override, self._next_seed = limits, template, next_seed
        self._templates: dict[str, ChatTemplate] = {}

    def check(self, body: GenerationBody) -> None:
        """Refuse by its numbers alone what would cost too much, before any work is done on it.

        Raises:
            ApiError: 400; a field breaks a limit, or contradicts another.
        """
        limits = self._limits
        if (body.n or 1) > limits.n:
            raise bad_field("n", f"at most {limits.n} samples are made")
        if isinstance(body, CompletionBody) and len(body.prompts) > limits.prompts:
            raise bad_field("prompt", f"at most {limits.prompts} prompts a request are taken")
        if body.num_samples > limits.open_requests:
            raise bad_field("n", f"at most {limits.open_requests} texts a request can be made")
        if (body.num_logprobs or 0) > limits.logprobs:
            name = "logprobs" if isinstance(body, CompletionBody) else "top_logprobs"
            raise bad_field(name, f"at most {limits.logprobs} log-probabilities a token are given")
        if isinstance(body, ChatBody):
            _check_chat(body)
        if body.stream_options is not None and not body.stream:
            raise bad_field("stream_options", "needs stream to be true")
        if body.return_speculation and not body.stream:
            raise bad_field("return_speculation", "needs stream to be true")
        if _schema(body) is not None and (body.ignore_eos or body.min_tokens):
            # Behind a whole JSON text only the end may follow, so neither could be honoured.
            raise bad_field("ignore_eos" if body.ignore_eos else "min_tokens", "contradicts response_format")
        self._check_cost(request_cost(0, body.num_samples, body.most_tokens or 1, body.num_logprobs))

    async def make(self, body: GenerationBody, model: ServedModel) -> Job:
        """Return the job of a checked body; a conversation without a maximum may fill the context.

        Raises:
            ApiError: 400; the prompt does not fit, or the model has no template for a conversation.
        """
        if isinstance(body, CompletionBody):
            size = sum(len(prompt) for prompt in body.prompts)
            # A short text is encoded in less time than it takes to wake another thread.
            is_short = size <= _SHORT
            prompts = (
                _encode(body.prompts, model) if is_short else await asyncio.to_thread(_encode, body.prompts, model)
            )
            return self._job(body, prompts, model, body.most_tokens or DEFAULT_COMPLETION_TOKENS)
        if not isinstance(body, ChatBody):
            raise TypeError(f"{type(body).__name__} is neither a completion nor a conversation")
        template = self._template(model)
        messages = [{"role": message.role, "content": message.text()} for message in body.messages]
        prompt = await asyncio.to_thread(_encode_chat, template, messages, model)
        return self._job(body, [prompt], model, body.most_tokens or max(1, model.max_length - len(prompt)))

    def _check_cost(self, cost: int) -> None:
        if cost > self._limits.cost:
            raise ApiError(
                400,
                f"the request would cost {cost} units (prompt tokens + n * max_tokens * (1 + logprobs)); at most "
                f"{self._limits.cost} are taken: ask for fewer tokens, samples or logprobs",
                param="max_tokens",
                code="too_expensive",
            )

    def _job(self, body: GenerationBody, prompts: Sequence[Sequence[int]], model: ServedModel, max_tokens: int) -> Job:
        longest = max(len(prompt) for prompt in prompts)
        if longest + max_tokens > model.max_length:
            raise ApiError(
                400,
                f"{longest} prompt tokens and {max_tokens} to come do not fit the context of {model.max_length}",
                param="max_tokens" if longest < model.max_length else _prompt_field(body),
                code="context_length_exceeded",
            )
        self._check_cost(request_cost(sum(map(len, prompts)), body.num_samples, max_tokens, body.num_logprobs))
        return Job(
            prompts=prompts,
            params=self._params(body, model, max_tokens),
            schema=_schema(body),
            stream=bool(body.stream),
            include_usage=body.stream_options is not None and body.stream_options.include_usage,
            show_speculation=bool(body.return_speculation),
        )

    def _params(self, body: GenerationBody, model: ServedModel, max_tokens: int) -> SamplingParams:
        given: dict[str, Any] = {name: getattr(body, name) for name in _SAME_NAME}
        given |= {
            "n": body.n,
            "stop": (body.stop,) if isinstance(body.stop, str) else None if body.stop is None else tuple(body.stop),
            "stop_token_ids": None if body.stop_token_ids is None else tuple(body.stop_token_ids),
            "logit_bias": _logit_bias(body, model),
            "seed": self._next_seed() if body.seed is None else body.seed,
            "max_tokens": max_tokens,
            "logprobs": body.num_logprobs,
        }
        try:
            return SamplingParams(**{name: value for name, value in given.items() if value is not None})
        except ConfigError as error:
            raise ApiError(400, str(error)[:400], code="invalid_value") from None

    def _template(self, model: ServedModel) -> ChatTemplate:
        source = self._override or model.chat_template
        if source is None:
            raise ApiError(
                400,
                "this model's directory has no chat template; use /v1/completions, or start the server with a template",
                param="messages",
                code="no_chat_template",
            )
        try:
            if source not in self._templates:
                self._templates = {source: ChatTemplate(source, max_characters=self._limits.template_characters)}
        except ConfigError as error:
            raise ApiError(400, str(error)[:400], param="messages", code="no_chat_template") from None
        return self._templates[source]


async def constraint_for(job: Job, model: ServedModel) -> Constraint | None:
    """Return what holds one sample to the job's schema, or None where it is free.

    Raises:
        ApiError: 400; no grammar can be made of the schema.
    """
    if job.schema is None:
        return None
    try:
        return await asyncio.to_thread(model.grammar, job.schema)
    except InputError as error:
        raise bad_field("response_format", str(error)[:400]) from None
    except MissingExtraError:
        raise bad_field("response_format", "this server was installed without its grammar library") from None


def single_samples(job: Job) -> list[SamplingParams]:
    """Return the parameters of each sample by itself, each with the seed that the engine would give it."""
    return [sample_params(job.params, index) for index in range(job.params.n)]


def _check_chat(body: ChatBody) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_field("top_logprobs", "needs logprobs to be true")
    both = (body.max_tokens, body.max_completion_tokens)
    if None not in both and body.max_tokens != body.max_completion_tokens:
        raise bad_field("max_tokens", "contradicts max_completion_tokens; give one of them")


def _encode(texts: Sequence[str | list[int]], model: ServedModel) -> list[list[int]]:
    fault("serve.tokenise")
    return [model.encode_prompt(text) if isinstance(text, str) else text for text in texts]


def _encode_chat(template: ChatTemplate, messages: Sequence[Mapping[str, str]], model: ServedModel) -> list[int]:
    fault("serve.tokenise")
    return prompt_tokens(template, messages, model)


def _prompt_field(body: GenerationBody) -> str:
    return "prompt" if isinstance(body, CompletionBody) else "messages"


def _schema(body: GenerationBody) -> Mapping[str, Any] | None:
    wanted = body.response_format
    if wanted is None or isinstance(wanted, TextFormat):
        return None
    return wanted.json_schema.schema_ if isinstance(wanted, JsonSchemaFormat) else _ANY_OBJECT


def _logit_bias(body: GenerationBody, model: ServedModel) -> dict[int, float] | None:
    if body.logit_bias is None:
        return None
    bias: dict[int, float] = {}
    for name, value in body.logit_bias.items():
        token = int(name) if name.isascii() and name.isdigit() and len(name) < 11 else -1
        if not 0 <= token < model.vocabulary_size:
            raise bad_field("logit_bias", f"names must be token ids from 0 to {model.vocabulary_size - 1}")
        bias[token] = value
    return bias
