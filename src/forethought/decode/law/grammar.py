"""Constraints from grammars: JSON schemas, regular expressions and free JSON objects, through llguidance.

Shape suffix: V vocabulary.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import ForethoughtError, InputError
from forethought.core.extras import require
from forethought.data import Tokenizer

MAX_GRAMMAR_CHARACTERS = 1 << 18
_NUM_KEPT = 64
# Without a bound a model that likes white space can fill its whole answer with it.
_JSON_OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,8}"}


class GrammarConstraint:
    """A request held to a grammar; after one of `end_V`, the tokens (V) that end a text, only they may follow."""

    def __init__(self, matcher: Any, end_V: NDArray[np.bool_]) -> None:
        self._matcher = matcher
        self._end_V = end_V
        self._has_ended = False

    @property
    def is_complete(self) -> bool:
        """Whether the text so far is a whole text of the grammar."""
        return self._has_ended or bool(self._matcher.is_accepting())

    def masks(self, draft: Sequence[int]) -> list[NDArray[np.bool_]]:
        """Return which tokens (V) may follow after 0, 1, ... of the drafted tokens, up to one that is not allowed.

        Raises:
            ForethoughtError: the grammar outgrew its limits.
        """
        masks_V, has_ended, num_consumed = [self._mask(self._has_ended)], self._has_ended, 0
        for token in draft:
            if not (0 <= token < len(self._end_V) and masks_V[-1][token]):
                break
            # The matcher does not count the end among the tokens that it can take back.
            has_ended = has_ended or bool(self._end_V[token])
            if not has_ended:
                self._consume(token)
                num_consumed += 1
            masks_V.append(self._mask(has_ended))
        if num_consumed and not self._matcher.rollback(num_consumed):
            raise self._failure("cannot return to where it was")
        return masks_V

    def commit(self, tokens: Sequence[int]) -> None:
        """Go on past tokens that were generated.

        Raises:
            ForethoughtError: a token is not allowed where it stands.
        """
        for token in tokens:
            if not self._has_ended:
                self._consume(token)
            elif not self._end_V[token]:
                raise ForethoughtError(f"the grammar does not allow token {token} after the end of the text")
            self._has_ended = self._has_ended or bool(self._end_V[token])

    def _mask(self, has_ended: bool) -> NDArray[np.bool_]:
        if has_ended:
            return self._end_V
        allowed_V = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)[: len(self._end_V)] != 0
        if self._matcher.is_error():
            raise self._failure("cannot go on")
        return allowed_V

    def _consume(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise self._failure(f"does not allow token {token} here")

    def _failure(self, what: str) -> ForethoughtError:
        reason = _first_line(self._matcher.get_error())
        return ForethoughtError(f"the grammar {what}{': ' if reason else ''}{reason}")


class Grammars:
    """Makes constraints for the texts of one tokenizer; what was compiled is kept for the next request.

    `vocabulary_size` is the model's, where it has more or fewer tokens than the tokenizer; masks are of that size.

    The grammar sees a text as bytes, so any split into tokens that spells an allowed text is allowed. A text may end
    (with one of `eos_token_ids`) where it is whole, and must where nothing can follow.

    Raises:
        MissingExtraError: llguidance is not installed.
        InputError: the tokenizer is of a kind that it cannot read, or no text of the model can end.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, vocabulary_size: int | None = None, eos_token_ids: Sequence[int] | None = None
    ) -> None:
        self._library = require("llguidance", extra="serve", purpose="structured output")
        num_tokens = vocabulary_size or tokenizer.vocab_size
        ends = list(eos_token_ids) if eos_token_ids else [tokenizer.end_of_text]
        self._end_V = np.isin(np.arange(num_tokens), ends)
        if not self._end_V.any():
            raise InputError(f"none of the tokens {ends} that end a text is among the model's {num_tokens}")
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._limits = self._library.LLParserLimits(verbose_errors=False)
        try:
            self._tokenizer = self._library.LLTokenizer(
                tokenizer.serialised, n_vocab=max(num_tokens, tokenizer.vocab_size), eos_token=ends
            )
        except ValueError as error:
            raise InputError(f"structured output cannot read this tokenizer: {_first_line(str(error))}") from error

    def json_schema(self, schema: Mapping[str, Any] | str) -> GrammarConstraint:
        """Return a constraint to JSON that a schema (an object, or its text) describes.

        Raises:
            InputError: the schema is malformed, too large, or uses a keyword that is not supported.
        """
        text = schema if isinstance(schema, str) else _as_json(schema)

        def compiled() -> str:
            return self._library.LLMatcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS)

        return self._constraint("JSON schema", text, compiled)

    def json_object(self) -> GrammarConstraint:
        """Return a constraint to any JSON object."""
        return self.json_schema({"type": "object"})

    def regex(self, pattern: str) -> GrammarConstraint:
        """Return a constraint to texts that a regular expression (Rust's syntax, no look-around) matches as a whole.

        Raises:
            InputError: the pattern is malformed or too large.
        """
        if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
            raise InputError("the regular expression ends in a backslash that escapes nothing; write it twice")
        return self._constraint(
            "regular expression", pattern, lambda: self._library.LLMatcher.grammar_from_regex(pattern)
        )

    def _constraint(self, what: str, text: str, compiled: Callable[[], str]) -> GrammarConstraint:
        if len(text) > MAX_GRAMMAR_CHARACTERS:
            raise InputError(f"the {what} has {len(text)} characters; at most {MAX_GRAMMAR_CHARACTERS} are taken")
        key = (what, text)
        if key not in self._kept:
            try:
                grammar = compiled()
            except ValueError as error:
                raise InputError(f"the {what} is malformed: {_first_line(str(error))}") from error
            matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
            # The first mask finds grammars that no text can satisfy.
            if matcher.is_error() or not any(matcher.compute_logit_bias()) or matcher.is_error():
                raise InputError(f"the {what} cannot be used: {_first_line(matcher.get_error())}")
            self._kept[key] = matcher
            if len(self._kept) > _NUM_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return GrammarConstraint(self._kept[key].deep_copy(), self._end_V)


def _as_json(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the JSON schema is not JSON: {error}") from error


def _first_line(text: str) -> str:
    return " ".join(text.split())[:200]
