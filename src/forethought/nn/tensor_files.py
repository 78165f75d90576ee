"""Reading safetensors files from strangers, and writing them without holding a second copy of the weights."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from forethought.core import files
from forethought.core.errors import ArtefactError, unknown_name

MAX_HEADER_BYTES = 16 << 20
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TORCH_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def named_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a type that weights are stored in, given itself or by its name.

    Raises:
        ConfigError: the type is unknown or not stored.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _TORCH_NAMES:
        raise unknown_name("dtype", name, _TORCH_NAMES)
    return _TORCH_NAMES[name]


def inside(directory: Path, name: str) -> Path:
    """Return the path of a regular file of a directory, refusing names and links that lead out of it.

    Raises:
        ArtefactError: the name is no plain file name, the file leads elsewhere, or it is not a regular file.
    """
    if not files.is_plain_name(name) or "/" in name:
        raise ArtefactError(f"{directory}: {name[:200]!r} is no plain file name; a model's files lie in its directory")
    path = directory / name
    if path.is_symlink() and path.resolve().parent != directory.resolve():
        raise ArtefactError(
            f"{path} is a link to {path.resolve()}, outside its directory, and is not followed; "
            "copy the directory with its links resolved (cp -rL) and load the copy"
        )
    if not path.is_file():
        raise ArtefactError(f"{path} does not exist or is not a regular file; copy the whole model again")
    return path


@contextmanager
def opened(path: Path) -> Generator[Any, None, None]:
    """Open a safetensors file, memory-mapped, after a look at its header's size.

    Raises:
        ArtefactError: the file is not whole safetensors; the message names it.
    """
    size = path.stat().st_size
    with open(path, "rb") as raw:
        header = int.from_bytes(raw.read(8), "little")
    if size < 8 or header > min(MAX_HEADER_BYTES, size - 8):
        raise ArtefactError(
            f"{path} is no whole safetensors file: it has {size} bytes and declares a header of {header} "
            f"(at most {MAX_HEADER_BYTES}); copy it again"
        )
    try:
        with safe_open(str(path), framework="pt", device="cpu") as source:
            yield source
    except SafetensorError as error:
        raise ArtefactError(f"{path} is no valid safetensors file ({error}); copy it again") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> None:
    """Write one safetensors file, a tensor at a time, each converted to `dtype` where one is given.

    Raises:
        ArtefactError: a tensor has a type that is not written.
        StorageError: the disk refused the write.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        stored = dtype or tensor.dtype
        if stored not in _NAMES:
            raise ArtefactError(f"tensor {name!r} has type {stored}; written are {', '.join(map(str, _NAMES))}")
        end = offset + tensor.numel() * stored.itemsize
        header[name] = {"dtype": _NAMES[stored], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with files.explained("write", path), files.open_write(path) as out:
        out.write(len(encoded).to_bytes(8, "little"))
        out.write(encoded)
        for tensor in tensors.values():
            plain = tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
            out.write(plain.view(-1).view(torch.uint8).numpy().data)
