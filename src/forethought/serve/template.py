"""Chat templates: a conversation becomes tokens, by a program that came with a model directory and is not trusted.

What a client writes can never become a control token: such a text is refused, and only the template's own control
tokens are read as such.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from forethought.core.errors import ConfigError
from forethought.serve.engine import ServedModel
from forethought.serve.errors import ApiError, bad_field
from forethought.serve.sandbox import RefusedError, TemplateEnvironment, budget


class ChatTemplate:
    """A compiled template; `max_characters` bounds its output.

    Raises:
        ConfigError: the source is not a template, or uses something that is not offered to templates.
    """

    def __init__(self, source: str, *, max_characters: int = 4 << 20) -> None:
        self._max_characters = max_characters
        try:
            self._template = TemplateEnvironment().compiled(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            raise ConfigError(f"the chat template cannot be used: {str(error)[:200]}") from error

    def render(self, messages: Sequence[Mapping[str, str]], *, begin: str, end: str) -> str:
        """Return the text of a conversation, up to where the model is to answer.

        Raises:
            ApiError: 400; the template refuses the conversation, fails on it, or outgrows its budget.
        """
        values: dict[str, Any] = {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": True,
            "bos_token": begin,
            "eos_token": end,
            "tools": None,
            "documents": None,
        }
        try:
            with budget():
                return self._joined(values)
        except RefusedError as error:
            raise bad_field("messages", f"the chat template refuses this conversation: {str(error)[:200]}") from None
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            reason = "outgrew its budget" if isinstance(error, SecurityError) else "failed on this conversation"
            raise ApiError(400, f"messages: the chat template {reason}", param="messages", code="template") from error

    def _joined(self, values: dict[str, Any]) -> str:
        parts: list[str] = []
        size = 0
        for part in self._template.generate(values):
            parts.append(part)
            size += len(part)
            if size > self._max_characters:
                raise SecurityError("too much output")
        return "".join(parts)


def prompt_tokens(template: ChatTemplate, messages: Sequence[Mapping[str, str]], model: ServedModel) -> list[int]:
    """Return the tokens of a conversation.

    Raises:
        ApiError: 400; a message holds the text of a control token, or the template cannot render the conversation.
    """
    control = re.compile("|".join(re.escape(text) for text in sorted(model.special_tokens, key=len, reverse=True)))
    splits = bool(model.special_tokens)
    for place, message in enumerate(messages):
        found = control.search(message["content"]) if splits else None
        if found is not None:
            raise bad_field(f"messages.{place}.content", "holds the text of one of the model's control tokens")
    text = template.render(messages, begin=model.begin_of_text, end=model.end_of_text)
    tokens: list[int] = []
    marks = [(match.start(), match.end()) for match in control.finditer(text)] if splits else []
    for (_, begin), (end, after) in pairwise([(0, 0), *marks, (len(text), len(text))]):
        tokens += model.encode_text(text[begin:end]) if end > begin else []
        tokens += [model.special_tokens[text[end:after]]] if after > end else []
    return tokens
