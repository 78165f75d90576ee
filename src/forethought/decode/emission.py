"""What leaves a request: tokens are let out one by one, and the first that ends the request is the last.

Every stop condition is checked for every token, whichever way and in however large a batch it was produced.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from forethought.core.errors import ConfigError
from forethought.decode.detokenize import Decode, Detokenizer, StopScanner
from forethought.decode.law.sampling import SamplingParams


@dataclass(frozen=True)
class Chunk:
    """The tokens of one round and the text that became final with them (empty without a tokenizer)."""

    token_ids: list[int]
    text: str


class Emission:
    """The outgoing side of one request: stop conditions, text, and why it ended.

    `finish_reason` is None while it runs, then "length" (as many tokens as asked for or as the context holds) or
    "stop"; `stop_reason` is the stop string or stop token id that was met, None for the end-of-text token.

    Raises:
        ConfigError: the parameters name stop strings, and there is no `decode` to find them with.
    """

    def __init__(
        self, params: SamplingParams, max_tokens: int, eos_token_ids: Collection[int], decode: Decode | None
    ) -> None:
        if params.stop and decode is None:
            raise ConfigError(f"stop strings {list(params.stop)} need the tokenizer's decode function; give decode=")
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self._max_tokens, self._min_tokens = max_tokens, params.min_tokens
        self._keep_stop = params.include_stop_str_in_output
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._eos_token_ids = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._detokenizer = Detokenizer(decode) if decode is not None else None
        self._has_stop_strings = bool(params.stop)
        self._scanner = StopScanner(params.stop, include=params.include_stop_str_in_output)

    @property
    def remaining(self) -> int:
        """How many more tokens may leave."""
        return 0 if self.finish_reason else self._max_tokens - len(self.token_ids)

    def push(self, tokens: Sequence[int]) -> Chunk:
        """Let tokens out up to the one that ends the request, and return what left."""
        before, text = len(self.token_ids), ""
        if not self._has_stop_strings:
            text = self._push_together(tokens)
            self.text += text
            return Chunk(self.token_ids[before:], text)
        for token in tokens:
            if self.finish_reason is not None:
                break
            self.token_ids.append(token)
            text += self._text_of(token)
        self.text += text
        return Chunk(self.token_ids[before:], text)

    def _push_together(self, tokens: Sequence[int]) -> str:
        """Let tokens out where only ids can end the request: their text is made at once, which costs a quarter."""
        shown: list[int] = []
        for token in tokens:
            if self.finish_reason is not None:
                break
            self.token_ids.append(token)
            ends = (token in self._stop_token_ids or token in self._eos_token_ids) and self._may_stop
            if not ends or self._keep_stop:
                shown.append(token)
            if ends:
                self._finish("stop", token if token in self._stop_token_ids else None)
            elif len(self.token_ids) >= self._max_tokens:
                self._finish("length", None)
        if self._detokenizer is None:
            return ""
        text = self._detokenizer.push(*shown) if shown else ""
        return text + self._detokenizer.flush() if self.finish_reason is not None else text

    def _text_of(self, token: int) -> str:
        ends = (token in self._stop_token_ids or token in self._eos_token_ids) and self._may_stop
        text = "" if ends and not self._keep_stop else self._decoded(token)
        if self._scanner.found is not None:
            self._finish("stop", self._scanner.found)
        elif ends:
            self._finish("stop", token if token in self._stop_token_ids else None)
        elif len(self.token_ids) >= self._max_tokens:
            self._finish("length", None)
        return text + self._rest() if self.finish_reason is not None else text

    @property
    def _may_stop(self) -> bool:
        return len(self.token_ids) > self._min_tokens

    def _decoded(self, token: int) -> str:
        if self._detokenizer is None:
            return ""
        text = self._detokenizer.push(token)
        # Text from before min_tokens is never part of a stop string.
        return self._scanner.push(text) if self._may_stop else text

    def _rest(self) -> str:
        """The text still held back; a stop string may come to light only now, in a character that was cut off."""
        if self._detokenizer is None or self._scanner.found is not None:
            return ""
        text = self._scanner.push(self._detokenizer.flush())
        if self._scanner.found is not None:
            self._finish("stop", self._scanner.found)
        return text + self._scanner.flush()

    def _finish(self, reason: str, stop_reason: str | int | None) -> None:
        self.finish_reason, self.stop_reason = reason, stop_reason
