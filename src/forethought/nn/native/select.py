"""The largest logits of every row, in order.

Shape suffixes: M rows, V vocabulary, K entries wanted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from forethought.core.errors import InputError, StorageError
from forethought.nn.native.build import NativeError
from forethought.nn.native.library import load_library

Int64 = NDArray[np.int64]


def top_k(logits_MV: Tensor | NDArray[np.float32], k: int, excluded_M: Int64 | None = None) -> Int64:
    """Return the ids (M, K) of the k largest logits of each row, largest first, equals by ascending id.

    What is not a number counts as minus infinity. `excluded_M` names one id of each row that is left out, or -1. Where
    the kernels cannot be compiled, NumPy gives the same ids.

    Raises:
        InputError: the logits are not (M, V) in float32, k does not fit V, or the excluded ids are not M of them.
    """
    array_MV = logits_MV.detach().cpu().numpy() if isinstance(logits_MV, Tensor) else logits_MV
    if array_MV.ndim != 2 or array_MV.dtype != np.float32:
        raise InputError(f"logits of type {array_MV.dtype} and shape {array_MV.shape}; give (rows, vocabulary) float32")
    num_rows, vocabulary = array_MV.shape
    if excluded_M is not None:
        excluded_M = np.ascontiguousarray(excluded_M, dtype=np.int64)
        if excluded_M.shape != (num_rows,):
            raise InputError(f"excluded ids of shape {excluded_M.shape} for {num_rows} rows; give one a row, or -1")
    if not 1 <= k <= vocabulary - (excluded_M is not None):
        raise InputError(f"k {k} of a vocabulary of {vocabulary}; give 1 up to its size, less one for an excluded id")
    try:
        library = load_library()
    except (NativeError, StorageError):
        return top_k_numpy(array_MV, k, excluded_M)
    if array_MV.strides[1] != 4 or array_MV.strides[0] % 4 or array_MV.strides[0] < 0:
        array_MV = np.ascontiguousarray(array_MV)
    ids_MK = np.empty((num_rows, k), dtype=np.int64)
    excluded = None if excluded_M is None else excluded_M.ctypes.data
    stride = array_MV.strides[0] // 4
    library.forethought_top_k(array_MV.ctypes.data, num_rows, stride, vocabulary, k, excluded, ids_MK.ctypes.data)
    return ids_MK


def top_k_numpy(logits_MV: NDArray[np.float32], k: int, excluded_M: Int64 | None = None) -> Int64:
    """Return what top_k returns, with NumPy; the arguments are taken as checked."""
    ranks_MV = -np.where(np.isnan(logits_MV), -np.inf, logits_MV)
    left_out_MV = np.zeros(logits_MV.shape, dtype=bool)
    if excluded_M is not None:
        rows = np.flatnonzero((excluded_M >= 0) & (excluded_M < logits_MV.shape[1]))
        left_out_MV[rows, excluded_M[rows]] = True
    # lexsort is stable, so equals stay in the order of their ids.
    return np.lexsort((ranks_MV, left_out_MV), axis=-1)[:, :k].astype(np.int64)
