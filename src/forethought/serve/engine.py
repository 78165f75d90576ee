"""What the server needs of an engine and of a model: two protocols, and the model directory behind the second."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from forethought.core.errors import ArtefactError
from forethought.decode.law.constraint import Constraint
from forethought.decode.law.grammar import Grammars
from forethought.decode.law.sampling import SamplingParams
from forethought.decode.outputs import Update

if TYPE_CHECKING:
    from forethought.decode.llm import LLM


class Engine(Protocol):
    """Requests in, updates out; everything is called from one thread."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def add(self, prompt_tokens: Sequence[int], params: SamplingParams, *, constraint: Constraint | None = None) -> int:
        """Queue a request and return its id; an InputError says what is wrong with it."""
        ...

    def abort(self, request_id: int) -> None:
        """End a request at whatever stage it is."""
        ...

    def step(self) -> list[Update]:
        """Run one round of everything."""
        ...


class ServedModel(Protocol):
    """A model with its engine and its text side; `encode_text` and `decode` may be called from any thread."""

    name: str
    max_length: int
    vocabulary_size: int
    chat_template: str | None
    special_tokens: Mapping[str, int]
    begin_of_text: str
    end_of_text: str

    @property
    def engine(self) -> Engine:
        """The engine."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Return the tokens of a prompt, with the token that begins a text in front where the model wants one."""
        ...

    def encode_text(self, text: str) -> list[int]:
        """Return the tokens of a piece of text alone."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""
        ...

    def token_bytes(self, token: int) -> bytes | None:
        """Return the bytes that a token stands for, or None where they are not known."""
        ...

    def grammar(self, schema: Mapping[str, Any]) -> Constraint:
        """Return a constraint for one sample that only JSON of this schema satisfies; an InputError where it cannot."""
        ...

    def metrics(self) -> Mapping[str, Any]:
        """Return counters, gauges and histograms as plain values."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class ServedLanguageModel:
    """An `LLM` as the server sees it."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._tokenizer = llm.served.tokenizer
        self._lock = threading.Lock()
        self._grammars: Grammars | None = None
        self.name = llm.model_name
        self.max_length, self.vocabulary_size = llm.max_model_len, llm.vocab_size
        self.chat_template = llm.chat_template
        self.special_tokens: dict[str, int] = _special_tokens(self._tokenizer.serialised)
        names = {token: text for text, token in self.special_tokens.items()}
        self.begin_of_text = "".join(names.get(token, "") for token in llm.served.prefix)
        self.end_of_text = names.get(llm.served.end_of_text[0], "")

    @property
    def engine(self) -> Engine:
        """The engine."""
        return self._llm.engine

    def encode_prompt(self, text: str) -> list[int]:
        """Return the tokens of a prompt, with the token that begins a text in front where the model wants one."""
        return self._llm.encode(text)

    def encode_text(self, text: str) -> list[int]:
        """Return the tokens of a piece of text alone; special tokens in it are plain characters."""
        return self._tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""
        return self._llm.decode(tokens)

    def token_bytes(self, token: int) -> bytes | None:
        """Return the bytes that a token stands for, or None where the tokenizer is not byte-level."""
        table = self._token_bytes
        return table[token] if table is not None and token < len(table) else None

    def grammar(self, schema: Mapping[str, Any]) -> Constraint:
        """Return a constraint for one sample that only JSON of this schema satisfies.

        Raises:
            InputError: the schema cannot be turned into a grammar.
            MissingExtraError: the grammar library is not installed.
        """
        with self._lock:
            if self._grammars is None:
                self._grammars = Grammars(
                    self._tokenizer,
                    vocabulary_size=self.vocabulary_size,
                    eos_token_ids=self._llm.served.end_of_text,
                )
            return self._grammars.json_schema(schema)

    def metrics(self) -> Mapping[str, Any]:
        """Return counters, gauges and histograms as plain values."""
        return self._llm.metrics()

    def close(self) -> None:
        """Give the draft's process and memory back."""
        self._llm.close()

    @cached_property
    def _token_bytes(self) -> list[bytes] | None:
        try:
            return self._tokenizer.token_bytes
        except ArtefactError:
            return None


def _special_tokens(serialised: str) -> dict[str, int]:
    added: list[dict[str, Any]] = json.loads(serialised).get("added_tokens", [])
    return {entry["content"]: entry["id"] for entry in added if entry.get("special")}
