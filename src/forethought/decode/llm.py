"""The face of the engine: a model directory in, completions out, as vLLM users know it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from forethought.core.config import from_dict
from forethought.core.errors import InputError
from forethought.decode.building import build_engine
from forethought.decode.law.sampling import SamplingParams
from forethought.decode.options import EngineConfig, SpeculativeConfig
from forethought.decode.outputs import CompletionOutput, Logprob, RequestOutput, StreamChunk, Update
from forethought.decode.served import ServedModel, open_model

Prompt: TypeAlias = str | Mapping[str, Any]


class LLM:
    """A language model behind an engine with continuous batching and exact speculation; for one thread.

    `model` is a run of `pretrain`, a model directory of this library or a Hugging Face one (Llama, Qwen2, Qwen3).
    `speculative_config` has the fields of SpeculativeConfig, the other arguments are those of EngineConfig. Give it
    back with `close`, or use it in a `with` statement: a draft may run in a process of its own.

    Raises:
        ArtefactError: a directory holds no language model.
        ConfigError: an argument is unknown (the nearest is named), out of range, or the draft does not fit the model.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        speculative_config: Mapping[str, Any] | SpeculativeConfig | None = None,
        **options: Any,
    ) -> None:
        self.config = from_dict(EngineConfig, options, source="LLM(...)")
        given = speculative_config or {}
        self.speculative = (
            given
            if isinstance(given, SpeculativeConfig)
            else from_dict(SpeculativeConfig, given, source="speculative_config")
        )
        self.served: ServedModel = open_model(model)
        self.model_name = Path(model).name
        built = build_engine(self.served, self.config, self.speculative)
        self.engine, self.max_model_len = built.engine, built.max_model_len
        self.planner, self.backend = built.planner, built.backend
        self.draft_process_id = built.draft_process_id
        self.vocab_size = self.served.model.config.vocab_size

    @property
    def chat_template(self) -> str | None:
        """The directory's Jinja template of a conversation, or None."""
        return self.served.chat_template()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt, with the token that begins a text in front where the model wants one."""
        return self.served.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""
        return self.served.tokenizer.decode(token_ids)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_chunk: Callable[[StreamChunk], object] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts (texts, or {"prompt_token_ids": [...]}) and return one output each, in their order.

        `on_chunk` hears of every piece of text in the round that decided it.

        Raises:
            InputError: a prompt cannot be used, or there is not one SamplingParams for each prompt.
        """
        outputs = self._submit(prompts, sampling_params)
        try:
            for chunk in self._drain(outputs):
                if on_chunk is not None:
                    on_chunk(chunk)
        finally:
            self._abandon(outputs)
        return list(outputs.values())

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[StreamChunk]:
        """Complete prompts and yield each piece of text in the round that decided it; closing the iterator aborts.

        Raises:
            InputError: as `generate`.
        """
        outputs = self._submit(prompts, sampling_params)
        try:
            yield from self._drain(outputs)
        finally:
            self._abandon(outputs)

    def metrics(self) -> dict[str, Any]:
        """Return what the engine has counted and timed since it started, as plain JSON values."""
        values = self.engine.metrics()
        values["plan"] = self.planner.report() if self.planner is not None else None
        return values

    def close(self) -> None:
        """End what runs and give the draft's process and memory back; closing twice is no error."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None
    ) -> dict[int, RequestOutput]:
        items = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        params = _one_each(sampling_params, len(items))
        outputs: dict[int, RequestOutput] = {}
        try:
            for item, wanted in zip(items, params, strict=True):
                text, tokens = self._tokens(item)
                request_id = self.engine.add(tokens, wanted)
                samples = [CompletionOutput(index) for index in range(wanted.n)]
                for sample in samples:
                    sample.logprobs = None if wanted.logprobs is None else []
                    sample.cumulative_logprob = None if wanted.logprobs is None else 0.0
                    sample.statistics = self.engine.statistics(request_id, sample.index)
                outputs[request_id] = RequestOutput(str(request_id), text, tokens, samples)
        except BaseException:
            self._abandon(outputs)
            raise
        return outputs

    def _tokens(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, self.encode(prompt)
        if isinstance(prompt, Mapping) and set(prompt) == {"prompt_token_ids"}:
            return None, [int(token) for token in prompt["prompt_token_ids"]]
        if isinstance(prompt, Mapping) and set(prompt) == {"prompt"}:
            return str(prompt["prompt"]), self.encode(str(prompt["prompt"]))
        what = sorted(prompt) if isinstance(prompt, Mapping) else type(prompt).__name__
        raise InputError(f'a prompt is {what}; give a text, {{"prompt": text}} or {{"prompt_token_ids": [...]}}')

    def _drain(self, outputs: dict[int, RequestOutput]) -> Iterator[StreamChunk]:
        places = {request_id: place for place, request_id in enumerate(outputs)}
        open_samples = sum(len(output.outputs) for output in outputs.values())
        while open_samples:
            for update in self.engine.step():
                output = outputs.get(update.request_id)
                if output is None:
                    continue
                self._note(output, update)
                open_samples -= update.finish_reason is not None
                yield StreamChunk(
                    places[update.request_id], update.index, update.token_ids, update.text, update.finish_reason
                )

    def _note(self, output: RequestOutput, update: Update) -> None:
        sample = output.outputs[update.index]
        if update.index == 0:
            # Later samples may find what the first has read.
            output.num_cached_tokens = max(output.num_cached_tokens, update.num_cached_tokens)
        sample.token_ids += update.token_ids
        sample.text += update.text
        if update.logprobs is not None and sample.logprobs is not None:
            for token, entry in zip(update.token_ids, update.logprobs, strict=True):
                named = {
                    id_: Logprob(value, rank, self.decode([id_])) for rank, (id_, value) in enumerate(entry.top, 1)
                }
                named[token] = Logprob(entry.logprob, entry.rank, self.decode([token]))
                sample.logprobs.append(named)
                sample.cumulative_logprob = (sample.cumulative_logprob or 0.0) + entry.logprob
        sample.finish_reason, sample.stop_reason, sample.error = update.finish_reason, update.stop_reason, update.error
        output.finished = all(other.finish_reason is not None for other in output.outputs)

    def _abandon(self, outputs: Mapping[int, RequestOutput]) -> None:
        for request_id in outputs:
            self.engine.abort(request_id)


def _one_each(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InputError(f"{len(params)} SamplingParams for {count} prompts; give one for all, or one for each")
    return list(params)
