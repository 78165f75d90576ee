"""A model directory opened for serving: the model, its tokenizer, and how a text for it begins and ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from forethought.core import files
from forethought.core.artefact import ARTEFACT, resolve
from forethought.core.errors import ArtefactError
from forethought.data import Tokenizer, load_tokenizer
from forethought.nn import LanguageModel, load_language_model, special_token_ids

_TEMPLATE_FILE, _SETTINGS_FILE = "chat_template.jinja", "tokenizer_config.json"
_MAX_TEMPLATE_BYTES, _MAX_SETTINGS_BYTES = 1 << 20, 64 << 20


@dataclass(frozen=True)
class ServedModel:
    """A model with what turns text into its tokens and back."""

    model: LanguageModel
    tokenizer: Tokenizer
    prefix: list[int]
    end_of_text: tuple[int, ...]
    directory: Path

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt, with the token that begins a text in front."""
        return self.prefix + self.tokenizer.encode(text)

    def chat_template(self) -> str | None:
        """Return the directory's Jinja template of a conversation, as text, or None where it has none.

        Raises:
            ArtefactError: the template's file is too large or malformed.
        """
        return read_chat_template(self.directory)


def open_model(directory: Path | str) -> ServedModel:
    """Open a model directory, or the model of a run, with its tokenizer.

    Raises:
        ArtefactError: the directory holds no language model or no tokenizer.
    """
    kind, place = resolve(directory)
    if kind != "language-model":
        raise ArtefactError(f"{directory} is a {kind}, not a language model (an unfinished run has none yet)")
    tokenizer, special = load_tokenizer(place), special_token_ids(place)
    model = load_language_model(place)
    # Our own models begin every document with the separator; Llama's begin with their bos; Qwen's with nothing.
    if (place / ARTEFACT).is_file():
        prefix = [tokenizer.end_of_text]
    else:
        prefix = [special.bos] if special.bos is not None and model.config.family == "llama" else []
    return ServedModel(model, tokenizer, prefix, special.eos or (tokenizer.end_of_text,), place)


def read_chat_template(directory: Path) -> str | None:
    """Return the Jinja template that a Hugging Face directory holds, in its own file or in the tokenizer's settings."""
    path = directory / _TEMPLATE_FILE
    if path.is_file():
        content = files.read_bounded(path, what="chat template", limit=_MAX_TEMPLATE_BYTES)
        return content.decode("utf-8", errors="replace")
    path = directory / _SETTINGS_FILE
    if not path.is_file():
        return None
    template = files.read_json(path, what="tokenizer settings", limit=_MAX_SETTINGS_BYTES).get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
