"""The idx reader and the two image sets: shapes, refusals, real files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from forethought.core.errors import DataError
from forethought.data.images import load_digits, load_mnist, read_idx


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def test_an_array_comes_back_plain_and_gzipped(tmp_path: Path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(array)))
    assert np.array_equal(read_idx(tmp_path / "plain"), array)
    assert np.array_equal(read_idx(tmp_path / "packed.gz"), array)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"PNG!", "no idx file"),
        (b"", "no idx file"),
        (idx(np.zeros(3, np.uint8), kind=0x0D), "only unsigned bytes"),
        (idx(np.zeros(3, np.uint8))[:-1], "says shape"),
        (idx(np.zeros(3, np.uint8)) + b"x", "says shape"),
        (struct.pack(">BBBBII", 0, 0, 8, 2, 1 << 31, 1 << 31), "says shape"),
        (struct.pack(">BBBB", 0, 0, 8, 200), "axes"),
        (gzip.compress(idx(np.zeros(300, np.uint8)), mtime=0)[:-9], "damaged gzip"),
    ],
)
def test_what_is_no_idx_file_is_refused_by_name(tmp_path: Path, content: bytes, word: str):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=word) as raised:
        read_idx(path)
    assert str(path) in str(raised.value)


def test_images_and_labels_of_different_counts_are_refused(tmp_path: Path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((3, 2, 2), np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(2, np.uint8)))
    with pytest.raises(DataError, match="do not belong together"):
        load_mnist(tmp_path)


def test_a_folder_without_the_files_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="train-images"):
        load_mnist(tmp_path)


def test_mnist_is_mnist(shared_data: Path):
    test = load_mnist(shared_data / "images" / "mnist", "test")
    assert test.inputs.shape == (10_000, 1, 28, 28)
    assert test.inputs.min() == 0.0
    assert test.inputs.max() == 1.0
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_the_digits_are_split_without_overlap_and_by_seed():
    train, test = load_digits(seed=0)
    again, _ = load_digits(seed=0)
    other, _ = load_digits(seed=1)
    assert (len(train), len(test)) == (1400, 397)
    assert np.array_equal(train.inputs, again.inputs)
    assert not np.array_equal(train.labels, other.labels)
    rows = {row.tobytes() for row in train.inputs}
    assert not rows & {row.tobytes() for row in test.inputs}
