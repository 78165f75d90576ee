"""Images from files in the idx format (MNIST and its kin), plain or gzipped, and the digits of scikit-learn.

Legend: N examples, C channels, H rows, W columns.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.core.errors import DataError
from forethought.core.extras import require
from forethought.core.rng import generator

MAX_BYTES = 1 << 30
_UNSIGNED_BYTE = 0x08
_MAX_AXES = 4
_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True)
class LabelledImages:
    """Examples and their labels: inputs float32 [N, C, H, W] in [0, 1] or [N, features], labels int64 [N]."""

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> LabelledImages:
        """Return the examples of these row numbers, in their order."""
        return LabelledImages(self.inputs[rows], self.labels[rows], self.num_classes)


def read_idx(path: Path | str) -> NDArray[np.uint8]:
    """Return the array of unsigned bytes in an idx file, gzipped or plain.

    Raises:
        DataError: the file is absent, is no idx file of unsigned bytes, or is shorter or longer than its header says.
    """
    path = Path(path)
    data = _content(path)
    if len(data) < 4 or data[:2] != b"\x00\x00":
        raise DataError(f"{path} is no idx file: it begins with {data[:4]!r}; the first two bytes must be zero")
    kind, num_axes = data[2], data[3]
    if kind != _UNSIGNED_BYTE:
        raise DataError(f"{path} holds idx type 0x{kind:02x}; only unsigned bytes (0x08) are read")
    if not 1 <= num_axes <= _MAX_AXES or len(data) < 4 + 4 * num_axes:
        raise DataError(f"{path} says it has {num_axes} axes in {len(data)} bytes; 1 to {_MAX_AXES} are read")
    shape = tuple(int(size) for size in np.frombuffer(data, dtype=">u4", count=num_axes, offset=4))
    start, size = 4 + 4 * num_axes, math.prod(shape)
    if len(data) - start != size:
        raise DataError(f"{path} says shape {shape} ({size} bytes) and holds {len(data) - start}; fetch it again")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def load_mnist(folder: Path | str, split: str = "train") -> LabelledImages:
    """Return one split ("train" or "test") of an MNIST-shaped folder of idx files, pixels divided by 255.

    Division by 255 is a property of the byte format and not of the data; nothing is centred on data statistics.

    Raises:
        DataError: a file is absent or malformed, the counts differ, or a label is not a digit.
    """
    folder = Path(folder)
    if split not in _NAMES:
        raise DataError(f"unknown split {split!r}; known: {', '.join(_NAMES)}")
    images, labels = (read_idx(_find(folder, name)) for name in _NAMES[split])
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(f"{folder} ({split}): images {images.shape} and labels {labels.shape} do not belong together")
    if len(labels) and int(labels.max()) > 9:
        raise DataError(f"{folder} ({split}): label {int(labels.max())} is not a digit")
    inputs = (images.astype(np.float32) / np.float32(255.0))[:, None]
    return LabelledImages(inputs, labels.astype(np.int64), 10)


def load_digits(*, seed: int = 0, num_train: int = 1400) -> tuple[LabelledImages, LabelledImages]:
    """Return the 1,797 handwritten digits of scikit-learn (8 x 8, 64 features in [0, 1]) as train and test rows.

    The split is drawn from `seed` alone, without a look at the labels.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        DataError: num_train leaves no row for one of the sides.
    """
    datasets: Any = require("sklearn.datasets", extra="certify", purpose="the built-in digits")
    pixels, labels = datasets.load_digits(return_X_y=True)
    total = len(labels)
    if not 1 <= num_train < total:
        raise DataError(f"num_train {num_train} is out of range; give 1 to {total - 1}")
    whole = LabelledImages((pixels / 16.0).astype(np.float32), labels.astype(np.int64), 10)
    order = generator(seed, "digits.split").permutation(total)
    return whole.take(order[:num_train]), whole.take(order[num_train:])


def _find(folder: Path, name: str) -> Path:
    # Both spellings are in circulation: a hyphen, and a dot before the number of axes.
    spellings = (name, name.replace("-idx", ".idx"))
    for candidate in (f"{spelling}{ending}" for spelling in spellings for ending in ("", ".gz")):
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataError(f"{folder} has no {name} and no {name}.gz; give the folder that holds the four MNIST files")


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give an idx file") from error
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        with gzip.open(path) as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file ({error}); fetch it again") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{path} unpacks to more than {MAX_BYTES} bytes; it is no image file of this kind")
    return data
