"""From updates to answers, in the forms of the two routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from forethought.decode.detokenize import Detokenizer
from forethought.decode.draft import TokenLogprobs
from forethought.decode.outputs import Update
from forethought.serve.calls import Call, Choice
from forethought.serve.engine import ServedModel
from forethought.serve.shapes import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Speculation,
    TokenLogprob,
    TopLogprob,
    Usage,
)


class Renderer(Protocol):
    """One route's forms."""

    def opening(self, index: int) -> Any | None:
        """Return the chunk that opens a choice, or None where there is none."""
        ...

    def chunk(self, index: int, update: Update) -> Any:
        """Return the chunk of an update."""
        ...

    def usage_chunk(self) -> Any:
        """Return the last chunk of a stream that was asked to give its usage."""
        ...

    def answer(self) -> Any:
        """Return the whole answer."""
        ...


class CompletionRenderer:
    """The forms of /v1/completions."""

    def __init__(self, call: Call, request_id: str, created: int, name: str) -> None:
        self._call, self._texts = call, _Texts(call)
        self._facts = (f"cmpl-{request_id}", created, name)
        self._offsets = [0] * len(call.choices)

    def opening(self, index: int) -> None:
        """A text opens without a chunk of its own."""

    def chunk(self, index: int, update: Update) -> Completion:
        """Return the chunk of an update."""
        choice = CompletionChoice(
            index=index,
            text=update.text,
            logprobs=self._logprobs(index, update.token_ids, update.logprobs),
            finish_reason=update.finish_reason,
            stop_reason=update.stop_reason,
        )
        if self._call.job.show_speculation:
            choice["speculation"] = self._texts.speculation(index, update)
        return self._with_usage(self._completion([choice]))

    def usage_chunk(self) -> Completion:
        """Return the chunk without choices that ends a stream."""
        chunk = self._completion([])
        chunk["usage"] = usage(self._call)
        return chunk

    def answer(self) -> Completion:
        """Return the whole answer."""
        answer = self._completion([self._choice(index, choice) for index, choice in enumerate(self._call.choices)])
        answer["usage"] = usage(self._call)
        return answer

    def _choice(self, index: int, choice: Choice) -> CompletionChoice:
        return {
            "index": index,
            "text": choice.text,
            "logprobs": self._logprobs(index, choice.token_ids, choice.logprobs),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _completion(self, choices: list[CompletionChoice]) -> Completion:
        id_, created, name = self._facts
        return {"id": id_, "object": "text_completion", "created": created, "model": name, "choices": choices}

    def _with_usage(self, chunk: Completion) -> Completion:
        if self._call.job.include_usage:
            chunk["usage"] = None
        return chunk

    def _logprobs(
        self, index: int, tokens: Sequence[int], entries: Sequence[TokenLogprobs] | None
    ) -> CompletionLogprobs | None:
        if self._call.job.params.logprobs is None:
            return None
        texts = [self._texts.of(token) for token in tokens]
        offsets: list[int] = []
        for text in texts:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)
        tops: list[dict[str, float]] = []
        for token, entry in zip(tokens, entries or (), strict=True):
            # Several tokens may have one text (parts of a character do); the likeliest stands for them.
            top: dict[str, float] = {}
            for other, value in [*entry.top, (token, entry.logprob)]:
                top.setdefault(self._texts.of(other), value)
            tops.append(top)
        return {
            "tokens": texts,
            "token_logprobs": [entry.logprob for entry in entries or ()],
            "top_logprobs": tops,
            "text_offset": offsets,
        }


class ChatRenderer:
    """The forms of /v1/chat/completions."""

    def __init__(self, call: Call, request_id: str, created: int, name: str) -> None:
        self._call, self._texts = call, _Texts(call)
        self._facts = (f"chatcmpl-{request_id}", created, name)

    def opening(self, index: int) -> ChatChunk:
        """Return the chunk that says who speaks."""
        return self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None,
                             "finish_reason": None}])  # fmt: skip

    def chunk(self, index: int, update: Update) -> ChatChunk:
        """Return the chunk of an update."""
        choice = ChatChunkChoice(
            index=index,
            delta={"content": update.text} if update.text else {},
            logprobs=self._logprobs(update.token_ids, update.logprobs),
            finish_reason=update.finish_reason,
        )
        if update.finish_reason is not None:
            choice["stop_reason"] = update.stop_reason
        if self._call.job.show_speculation:
            choice["speculation"] = self._texts.speculation(index, update)
        return self._chunk([choice])

    def usage_chunk(self) -> ChatChunk:
        """Return the chunk without choices that ends a stream."""
        chunk = self._chunk([])
        chunk["usage"] = usage(self._call)
        return chunk

    def answer(self) -> ChatCompletion:
        """Return the whole answer."""
        id_, created, name = self._facts
        return {
            "id": id_,
            "object": "chat.completion",
            "created": created,
            "model": name,
            "choices": [self._choice(index, choice) for index, choice in enumerate(self._call.choices)],
            "usage": usage(self._call),
        }

    def _choice(self, index: int, choice: Choice) -> ChatChoice:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.token_ids, choice.logprobs),
            "finish_reason": choice.finish_reason or "abort",
            "stop_reason": choice.stop_reason,
        }

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        id_, created, name = self._facts
        chunk = ChatChunk(id=id_, object="chat.completion.chunk", created=created, model=name, choices=choices)
        if self._call.job.include_usage:
            chunk["usage"] = None
        return chunk

    def _logprobs(self, tokens: Sequence[int], entries: Sequence[TokenLogprobs] | None) -> ChatLogprobs | None:
        if self._call.job.params.logprobs is None:
            return None
        content = [
            TokenLogprob(**self._named(token, entry.logprob), top_logprobs=[self._named(*top) for top in entry.top])
            for token, entry in zip(tokens, entries or (), strict=True)
        ]
        return {"content": content, "refusal": None}

    def _named(self, token: int, logprob: float) -> TopLogprob:
        return {"token": self._texts.of(token), "logprob": logprob, "bytes": self._texts.bytes_of(token)}


def usage(call: Call) -> Usage:
    """Return the tokens of a call; those of its prompts count once, however many samples they have."""
    read, written = call.job.num_prompt_tokens, call.num_generated
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": call.num_cached},
    }


class _Texts:
    """The texts of single tokens."""

    def __init__(self, call: Call) -> None:
        self._model: ServedModel = call.model
        self._pieces = [Detokenizer(call.model.decode) for _ in call.choices] if call.job.show_speculation else []

    def of(self, token: int) -> str:
        return self._model.decode([token])

    def bytes_of(self, token: int) -> list[int] | None:
        content = self._model.token_bytes(token)
        return None if content is None else list(content)

    def speculation(self, index: int, update: Update) -> Speculation:
        return {
            "source": update.source,
            "token_ids": update.token_ids,
            "pieces": [self._pieces[index].push(token) for token in update.token_ids],
            "num_accepted": update.num_accepted,
            "rejected": [{"id": token, "text": self.of(token)} for token in update.rejected],
        }
