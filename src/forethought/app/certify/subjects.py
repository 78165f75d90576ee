"""What a certificate can be about on the command line: built-in examples and files, read without any training code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forethought.certify.certificate.data import Data, Examples, Tokens, load_data
from forethought.certify.tokens_from_text import read_characters, read_documents
from forethought.core.errors import DataError
from forethought.data.images import LabelledImages, load_digits, load_mnist

DIGITS, MNIST, TEXT, FILE = "digits", "mnist", "text", "file"
TEST_CHARACTERS = 0.1


def read_pair(name: str, data: Path | None, *, max_tokens: int | None = None) -> tuple[Data, Data | None]:
    """Return the training data of a subject and its test data, where there are any.

    digits: the built-in split; mnist: a folder of idx files; text: a file whose last tenth is the test, or JSON lines
    whose documents of another split than train are it; else a .npz or .npy file. `max_tokens` keeps the first tokens
    of training, and of the test a tenth as many.

    Raises:
        DataError: a file is missing or of another kind.
        MissingExtraError: the built-in digits need scikit-learn.
    """
    if name == DIGITS:
        train, test = load_digits()
        return _examples(train), _examples(test)
    if data is None:
        raise DataError(f"{name} needs --data: a folder of MNIST's four files, a text, or a .npz or .npy file")
    if name == MNIST:
        return _examples(load_mnist(data)), _examples(load_mnist(data, "test"))
    pair = _text(data) if name == TEXT else (load_data(data), None)
    return pair if max_tokens is None else _cut(pair, max_tokens)


def read_data(data: str) -> Data:
    """Return training data named on the command line: digits, a folder of MNIST, a text, or a .npz or .npy file.

    Raises:
        DataError: a file is missing or of another kind.
    """
    path = Path(data)
    if data == DIGITS:
        return read_pair(DIGITS, None)[0]
    if path.is_dir():
        return read_pair(MNIST, path)[0]
    if path.suffix in (".npz", ".npy"):
        return load_data(path)
    return read_pair(TEXT, path)[0]


def arrays_of(data: Data) -> dict[str, Any]:
    """Return data as the arrays that a .npz for `certify verify --data` holds."""
    if isinstance(data, Examples):
        groups = {} if data.groups is None else {"groups": data.groups}
        return {"inputs": data.inputs, "labels": data.labels, **groups}
    return {"tokens": data.tokens}


def _text(path: Path) -> tuple[Data, Data | None]:
    if ".jsonl" in path.suffixes:
        train, test = read_documents(path)
        return Tokens(train), Tokens(test) if len(test) else None
    tokens = read_characters(path)
    cut = len(tokens) - round(TEST_CHARACTERS * len(tokens))
    return Tokens(tokens[:cut]), Tokens(tokens[cut:])


def _cut(pair: tuple[Data, Data | None], max_tokens: int) -> tuple[Data, Data | None]:
    train, test = pair
    if not isinstance(train, Tokens) or max_tokens < 1:
        raise DataError(f"max_tokens {max_tokens} goes with a text or tokens, and is at least 1")
    shorter = Tokens(test.tokens[: -(-max_tokens // 10)]) if isinstance(test, Tokens) else test
    return Tokens(train.tokens[:max_tokens]), shorter


def _examples(images: LabelledImages) -> Examples:
    return Examples(images.inputs, images.labels)
