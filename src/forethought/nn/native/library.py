"""The compiled library as Python calls it: loaded once a process, with the types of every function."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import numpy as np

from forethought.core.errors import InputError
from forethought.nn.native.build import NativeError, library_path
from forethought.nn.rows import Int32, Rows

DONE, BAD_ROWS, MORE_ANGLES, NO_MEMORY, NOT_FINITE = range(5)
_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_FLOAT, _DOUBLE = ctypes.c_float, ctypes.c_double


class Shape(ctypes.Structure):
    """The sizes of a model and of its pool, as model.h has them."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("vocab", "hidden", "layers", "heads", "kv_heads", "width", "middle")),
        *((name, ctypes.c_int32) for name in ("num_pages", "page_size", "threads", "brain", "max_positions")),
        ("epsilon", ctypes.c_float),
    ]


class RowsPointers(ctypes.Structure):
    """Sizes and addresses of the arrays of Rows, as forward.h has them."""

    _fields_ = [
        *((name, _LONG) for name in ("num_rows", "num_sequences", "num_pages", "num_extra", "num_wanted")),
        *((name, _POINTER) for name in ("tokens", "positions", "slots", "sequence")),
        *((name, _POINTER) for name in ("visible", "pages", "wanted", "extra")),
    ]


_SIGNATURES = {
    "forethought_create": (_POINTER, (_POINTER,)),
    "forethought_destroy": (None, (_POINTER,)),
    "forethought_matrix": (None, (_POINTER, _INT, _INT, _POINTER, _LONG, _LONG)),
    "forethought_vector": (None, (_POINTER, _INT, _INT, _POINTER, _LONG)),
    "forethought_table": (None, (_POINTER, _POINTER, _POINTER)),
    "forethought_angles": (None, (_POINTER, _POINTER, _POINTER, _LONG)),
    "forethought_logits": (_INT, (_POINTER, _POINTER, _POINTER)),
    "forethought_chain": (_INT, (_POINTER, _POINTER, _POINTER, _LONG, _POINTER)),
    "forethought_law": (
        _INT,
        (_POINTER, _INT, _LONG, _LONG, _LONG, _DOUBLE, _DOUBLE, _DOUBLE, _LONG, _INT, _POINTER, _POINTER, _POINTER),
    ),
    "forethought_sample": (_INT, (_POINTER, _LONG, _LONG, _LONG, _FLOAT, _POINTER, _POINTER, _POINTER)),
    "forethought_draw": (_INT, (_POINTER, _INT, _LONG, _LONG, _LONG, _POINTER, _POINTER)),
    "forethought_top_k": (None, (_POINTER, _LONG, _LONG, _LONG, _LONG, _POINTER, _POINTER)),
}


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """Return the kernels, compiled if need be. Calls into them release the interpreter lock.

    Raises:
        NativeError: they cannot be built or loaded here.
        StorageError: the cache of compiled libraries cannot be written.
    """
    return bind(library_path())


def bind(path: Path) -> ctypes.CDLL:
    """Load a compiled library and give its functions their types.

    Raises:
        NativeError: it cannot be loaded, or lacks a function.
    """
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NativeError(f"the compiled kernels {path} cannot be loaded ({error}); use the torch backend") from error
    return library


class Packed:
    """The arrays of some rows as one structure of addresses; it keeps alive what it points to.

    Raises:
        InputError: an array is not int32, or the shapes do not belong together.
    """

    def __init__(self, rows: Rows) -> None:
        per_row = [rows.tokens_N, rows.positions_N, rows.slots_N, rows.sequence_N, rows.visible_N]
        arrays = [int32_array(each, 1) for each in per_row]
        pages_SP, wanted_M = int32_array(rows.pages_SP, 2), int32_array(rows.logits_M, 1)
        extra_NE = None if rows.extra_NE is None else int32_array(rows.extra_NE, 2)
        num_rows = len(arrays[0])
        lengths = [len(each) for each in arrays] + ([] if extra_NE is None else [len(extra_NE)])
        if any(length != num_rows for length in lengths):
            raise InputError(f"the arrays of rows have lengths {lengths}; give one entry a row in each")
        self.num_wanted = len(wanted_M)
        self._held = (arrays, pages_SP, wanted_M, extra_NE)
        self.pointers = RowsPointers(
            num_rows,
            pages_SP.shape[0],
            pages_SP.shape[1],
            0 if extra_NE is None else extra_NE.shape[1],
            self.num_wanted,
            *(each.ctypes.data for each in arrays),
            pages_SP.ctypes.data,
            wanted_M.ctypes.data,
            None if extra_NE is None else extra_NE.ctypes.data,
        )
        self.address = ctypes.addressof(self.pointers)


def int32_array(array: Int32, num_axes: int) -> Int32:
    """Return an int32 array in one piece, the given one where it is such.

    Raises:
        InputError: it has another type or another number of axes.
    """
    if array.dtype != np.int32 or array.ndim != num_axes:
        raise InputError(f"an array of type {array.dtype} with {array.ndim} axes; give int32 with {num_axes}")
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
