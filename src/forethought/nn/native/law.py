"""The laws of rows of logits, and tokens drawn from laws.

Every row is computed by itself in double precision: its law and its token have the same bits in any batch.

Shape suffixes: M rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from forethought.core.errors import ForethoughtError, InputError, StorageError
from forethought.nn.native.build import NativeError
from forethought.nn.native.library import DONE, NOT_FINITE, load_library

_KINDS = (torch.float32, torch.float64)


@lru_cache(maxsize=1)
def has_laws() -> bool:
    """Return whether `softmax` and `draw` can be used here; what it says once it says for as long as the process lives.

    So two laws that are compared are never one of the kernels' and one of something else.
    """
    try:
        load_library()
    except (NativeError, StorageError):
        return False
    return True


def softmax(
    logits_MV: Tensor,
    temperature: float,
    *,
    min_p: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return the laws (M, V) of rows of logits in float32 or float64, computed in float64 and rounded at the end.

    The filters apply in the order temperature, min_p, top_k (0 or less keeps all), top_p; of equals at an edge the
    lowest ids stay. What is below e^-708 of the likeliest token's share counts as nothing.

    Raises:
        InputError: the logits are not (M, V) in float32 or float64 on the CPU, or the temperature is not positive.
        ForethoughtError: the logits hold NaN or +inf, or a row is -inf everywhere.
        NativeError: the kernels cannot be built or loaded here.
    """
    if not temperature > 0.0:
        raise InputError(f"temperature {temperature}; a law needs a positive one, 0 is the largest logit itself")
    logits_MV = _rows(logits_MV, "logits")
    laws_MV = torch.empty(logits_MV.shape, dtype=dtype)
    outcome = load_library().forethought_law(
        *_where(logits_MV),
        temperature,
        math.log(min_p) if min_p > 0.0 else -math.inf,
        top_p,
        max(0, top_k),
        int(_checked_kind(dtype) == torch.float64),
        laws_MV.data_ptr(),
    )
    if outcome == NOT_FINITE:
        raise ForethoughtError("the model gave logits without a finite largest value; its weights or input are damaged")
    _require_done(outcome)
    return laws_MV


def draw(laws_MV: Tensor, uniforms_M: Sequence[float]) -> list[int]:
    """Return for each law (float32 or float64) the token at which its cumulative sums pass uniform * total.

    The sums run in float64 from the first token to the last. A token without mass is never returned.

    Raises:
        InputError: the laws are not (M, V) on the CPU, there are not M numbers, or a law has no mass.
        NativeError: the kernels cannot be built or loaded here.
    """
    laws_MV = _rows(laws_MV, "laws")
    numbers_M = np.array(uniforms_M, dtype=np.float64)
    if numbers_M.shape != laws_MV.shape[:1]:
        raise InputError(f"{numbers_M.shape} uniform numbers for {len(laws_MV)} laws; give one a law")
    tokens_M = np.empty(len(laws_MV), dtype=np.int64)
    where = _where(laws_MV)
    _require_done(load_library().forethought_draw(*where, numbers_M.ctypes.data, tokens_M.ctypes.data))
    tokens = tokens_M.tolist()
    if -1 in tokens:
        raise InputError(f"law {tokens.index(-1)} has no mass to draw from, or holds what is no number")
    return tokens


def _rows(rows_MV: Tensor, what: str) -> Tensor:
    """The rows as the kernels read them: every row in one piece."""
    if rows_MV.ndim != 2 or rows_MV.shape[1] < 1 or rows_MV.device.type != "cpu":
        shape = tuple(rows_MV.shape)
        raise InputError(f"{what} of shape {shape} on {rows_MV.device}; give (rows, vocabulary) on the CPU")
    _checked_kind(rows_MV.dtype)
    return rows_MV if rows_MV.stride(1) == 1 and rows_MV.stride(0) >= 0 else rows_MV.contiguous()


def _where(rows_MV: Tensor) -> tuple[int, int, int, int, int]:
    """Address, whether in double precision, rows, the step between them, and their length."""
    return rows_MV.data_ptr(), int(rows_MV.dtype == torch.float64), len(rows_MV), rows_MV.stride(0), rows_MV.shape[1]


def _checked_kind(dtype: torch.dtype) -> torch.dtype:
    if dtype not in _KINDS:
        raise InputError(f"type {dtype}; give float32 or float64")
    return dtype


def _require_done(outcome: int) -> None:
    if outcome != DONE:
        raise InputError("there is not memory enough for so many rows; give fewer at once")
