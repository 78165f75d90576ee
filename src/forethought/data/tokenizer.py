"""Byte-level BPE: trained on the training split, saved as tokenizer.json, and exact in both directions.

The text of a document can never turn into a special token: "<|endoftext|>" inside a document is encoded as the plain
characters that it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

import forethought.data.encoding as encoding
from forethought.core import files
from forethought.core.errors import ArtefactError, ConfigError

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
_SETTINGS_FILE = "tokenizer_config.json"
MIN_VOCAB_SIZE = 257
MAX_VOCAB_SIZE = 1 << 20

_MAX_FILE_BYTES = 64 << 20
# The trainer holds 256 texts at a time, so short parts bound its memory.
_TRAINING_PART = 1 << 16
_SEPARATORS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<|im_end|>")


class Tokenizer:
    """Text to token ids and back; `end_of_text` is the id that separates documents, `digest` names the vocabulary."""

    def __init__(
        self, inner: tokenizers.Tokenizer, source: str = "the tokenizer", *, separator: str | None = None
    ) -> None:
        inner.encode_special_tokens = True
        inner.no_padding()
        inner.no_truncation()
        self._inner = inner
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        self.end_of_text = _separator(inner, source, separator)

    @cached_property
    def serialised(self) -> str:
        """The content of tokenizer.json."""
        return self._inner.to_str()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the serialised tokenizer: equal digests give equal ids."""
        return sha256(self.serialised.encode()).hexdigest()

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes that each id stands for, in order; special tokens stand for none. Byte-level vocabularies only.

        Raises:
            ArtefactError: the tokenizer is not byte-level.
        """
        if not encoding.is_byte_level(self._facts):
            raise ArtefactError("the bytes of single tokens are known for byte-level tokenizers only")
        added = self._inner.get_added_tokens_decoder()
        table = _byte_table()
        result = []
        for token in range(self.vocab_size):
            text = "" if token in added else (self._inner.id_to_token(token) or "")
            result.append(bytes(table[character] for character in text))
        return result

    @cached_property
    def _byte_lengths(self) -> NDArray[np.int64]:
        return np.array([len(data) for data in self.token_bytes], dtype=np.int64)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return json.loads(self.serialised)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, special tokens in it taken as plain characters."""
        return self._inner.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def encode_batch(self, texts: Iterable[str]) -> list[NDArray[np.uint32]]:
        """Return the ids of each text, equal to those of `encode`; much faster where there is much text."""
        encode = self.bulk_encoder()
        return [encode(text) for text in texts]

    def bulk_encoder(self) -> Callable[[str], NDArray[np.uint32]]:
        """Return a function from a text to its ids that remembers what it met; for one thread, in bounded memory."""
        if encoding.can_cut(self._facts):
            return encoding.ChunkEncoder(self._inner, gpt2=encoding.is_gpt2(self._facts)).encode
        return lambda text: np.array(self.encode(text), dtype=np.uint32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of ids, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
        return self._inner.decode([int(token) for token in tokens], skip_special_tokens=True)

    def count_bytes(self, tokens: NDArray[Any]) -> int:
        """Return how many bytes of text the ids stand for, for bits a byte.

        Raises:
            ArtefactError: the tokenizer is not byte-level.
        """
        return int(self._byte_lengths[tokens].sum())

    def save(self, directory: Path) -> None:
        """Write tokenizer.json into a directory that is being staged, and beside it a separator it does not imply."""
        files.write_bytes(directory / TOKENIZER_FILE, self.serialised.encode())
        if _find_separator(self._inner, None) != self.end_of_text:
            settings = {"eos_token": self._inner.id_to_token(self.end_of_text)}
            files.write_bytes(directory / _SETTINGS_FILE, files.dump_json(settings))


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE; id 0 is <|endoftext|>, ids 1 to 256 the bytes. A small text gives fewer ids than asked for.

    The result depends on the texts alone. Source: Sennrich et al. 2016 (arXiv 1508.07909), over bytes as in GPT-2.

    Raises:
        ConfigError: vocab_size is below 257 or above 2**20.
    """
    if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        raise ConfigError(f"vocab_size {vocab_size} is out of range; give {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE}")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )
    inner.train_from_iterator((part for text in texts for part in encoding.safe_parts(text, _TRAINING_PART)), trainer)
    return Tokenizer(inner)


def load_tokenizer(place: str | Path) -> Tokenizer:
    """Open a tokenizer.json, given by itself or by the directory that holds it.

    Raises:
        ArtefactError: the file is missing, larger than 64 MiB, malformed, or names no token that ends a document.
    """
    path = _file_of(place)
    files.read_json(path, what="tokenizer", limit=_MAX_FILE_BYTES)
    try:
        inner = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # The library raises bare Exception for every malformed file.
        raise ArtefactError(f"tokenizer {path} is malformed ({str(error)[:200]}); restore the file") from error
    return Tokenizer(inner, str(path), separator=_given_separator(path.parent))


def stored_identity(place: str | Path) -> str:
    """Return what tells one stored tokenizer from another before it is opened: its file's hash and named separator.

    Empty where there is no such file.

    Raises:
        ArtefactError: the settings beside the tokenizer are malformed.
    """
    path = _file_of(place)
    if not path.is_file():
        return ""
    separator = _given_separator(path.parent)
    return files.sha256_file(path) + (f" {separator}" if separator is not None else "")


def _file_of(place: str | Path) -> Path:
    path = Path(place)
    return path / TOKENIZER_FILE if path.is_dir() else path


def _find_separator(inner: tokenizers.Tokenizer, given: str | None) -> int | None:
    special = [added.content for added in inner.get_added_tokens_decoder().values() if added.special]
    # A tokenizer with one special token has nothing else to end a document with.
    for name in ((given,) if given else ()) + _SEPARATORS + (tuple(special) if len(special) == 1 else ()):
        token = inner.token_to_id(name)
        if token is not None:
            return token
    return None


def _separator(inner: tokenizers.Tokenizer, source: str, given: str | None) -> int:
    found = _find_separator(inner, given)
    if found is not None:
        return found
    raise ArtefactError(
        f"{source} has no token that ends a document: name one as eos_token in {_SETTINGS_FILE} beside it, "
        f"or use one of {', '.join(_SEPARATORS)}"
    )


def _given_separator(directory: Path) -> str | None:
    """Return the end-of-text token that a Hugging Face directory names, as text or as an object with its content."""
    path = directory / _SETTINGS_FILE
    if not path.is_file():
        return None
    named = files.read_json(path, what="tokenizer settings", limit=_MAX_FILE_BYTES).get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    return named if isinstance(named, str) else None


def _byte_table() -> dict[str, int]:
    # GPT-2's reversible map: printable bytes stand for themselves, the others are moved up from U+0100 in order.
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + offset): byte for offset, byte in enumerate(hidden)}
