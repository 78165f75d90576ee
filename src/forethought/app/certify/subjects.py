"""What a certificate can be about on the command line: built-in examples and files, read without any training code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forethought.certify.certificate.data import Data, Examples, Tokens, load_data
from forethought.certify.tokens_from_text import read_characters
from forethought.core.errors import DataError
from forethought.data.images import LabelledImages, load_digits, load_mnist

DIGITS, MNIST, TEXT, FILE = "digits", "mnist", "text", "file"
TEST_CHARACTERS = 0.1


def read_pair(name: str, data: Path | None) -> tuple[Data, Data | None]:
    """Return the training data of a subject and its test data, where there are any.

    digits: the built-in split; mnist: a folder of idx files; text: a file whose last tenth is the test; else a .npz
    or .npy file.

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
    if name == TEXT:
        tokens = read_characters(data)
        cut = len(tokens) - round(TEST_CHARACTERS * len(tokens))
        return Tokens(tokens[:cut]), Tokens(tokens[cut:])
    return load_data(data), None


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
        return {"inputs": data.inputs, "labels": data.labels}
    return {"tokens": data.tokens}


def _examples(images: LabelledImages) -> Examples:
    return Examples(images.inputs, images.labels)
