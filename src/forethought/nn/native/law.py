"""The laws of rows of logits, and tokens drawn from laws.

Every row is computed by itself in double precision: its law and its token have the same bits in any batch.

Shape suffixes: M rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.core.errors import ForethoughtError, InputError, StorageError
from forethought.nn.native.build import NativeError
from forethought.nn.native.library import DONE, NOT_FINITE, load_library

_KINDS = (torch.float32, torch.float64)
# The temperatures for which single precision can hold what it must.
_NARROW = (1e-2, 1e2)


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


@dataclass(frozen=True, slots=True)
class LawFilters:
    """What is left out of a law, in this order; 0, 0 (or less) and 1 leave everything in.

    `min_p` is a part of the likeliest token's share. Of equals at the edge of `top_k` or `top_p` the lowest ids stay.
    """

    min_p: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


NO_FILTERS = LawFilters()


def softmax(logits_MV: Tensor, temperature: float, filters: LawFilters = NO_FILTERS) -> Tensor:
    """Return the laws (M, V) in float64 of rows of logits in float32 or float64.

    What is below e^-708 of the likeliest token's share counts as nothing.

    Raises:
        InputError: the logits are not (M, V) in float32 or float64 on the CPU, or the temperature is not positive.
        ForethoughtError: the logits hold NaN or +inf, or a row is -inf everywhere.
        NativeError: the kernels cannot be built or loaded here.
    """
    laws_MV = torch.empty(logits_MV.shape, dtype=torch.float64)
    _laws(logits_MV, temperature, filters, laws_MV)
    return laws_MV


def sample(
    logits_MV: Tensor,
    temperature: float,
    uniforms_M: Sequence[float],
    filters: LawFilters = NO_FILTERS,
    *,
    out_MV: Tensor | None = None,
) -> tuple[NDArray[np.int64], Tensor]:
    """Return a token (M) for each row, as `draw` gives it, and the laws (M, V) in float32 that it was drawn from.

    Meant for drafts, whose law may be any that was really drawn from: without filters all but the sums is computed in
    float32, and the laws agree with `softmax` to about 1e-6. With filters they are its laws, rounded. They are
    written to `out_MV` where it is given.

    Raises:
        InputError: as `softmax`, or there are not M numbers, or `out_MV` is not (M, V) in float32 in one piece.
        ForethoughtError: as `softmax`.
        NativeError: as `softmax`.
    """
    laws_MV = torch.empty(logits_MV.shape, dtype=torch.float32) if out_MV is None else out_MV
    if laws_MV.shape != logits_MV.shape or laws_MV.dtype != torch.float32 or not laws_MV.is_contiguous():
        raise InputError(
            f"laws of type {laws_MV.dtype} and shape {tuple(laws_MV.shape)}; give {tuple(logits_MV.shape)}"
        )
    numbers_M, tokens_M = _numbers(uniforms_M, len(logits_MV)), np.empty(len(logits_MV), dtype=np.int64)
    addresses = numbers_M.ctypes.data, tokens_M.ctypes.data
    if filters == NO_FILTERS and logits_MV.dtype == torch.float32 and _NARROW[0] <= temperature <= _NARROW[1]:
        address, _, *sizes = _where(_rows(logits_MV, "logits"))
        _require_done(load_library().forethought_sample(address, *sizes, temperature, laws_MV.data_ptr(), *addresses))
    else:
        _laws(logits_MV, temperature, filters, laws_MV, *addresses)
    return tokens_M, laws_MV


def draw(laws_MV: Tensor, uniforms_M: Sequence[float]) -> list[int]:
    """Return for each law (float32 or float64) the token at which its cumulative sums pass uniform * total.

    The sums run in float64 from the first token to the last. A token without mass is never returned.

    Raises:
        InputError: the laws are not (M, V) on the CPU, there are not M numbers, or a law has no mass.
        NativeError: the kernels cannot be built or loaded here.
    """
    laws_MV = _rows(laws_MV, "laws")
    numbers_M = _numbers(uniforms_M, len(laws_MV))
    tokens_M = np.empty(len(laws_MV), dtype=np.int64)
    where = _where(laws_MV)
    _require_done(load_library().forethought_draw(*where, numbers_M.ctypes.data, tokens_M.ctypes.data))
    tokens = tokens_M.tolist()
    if -1 in tokens:
        raise InputError(f"law {tokens.index(-1)} has no mass to draw from, or holds what is no number")
    return tokens


def _laws(
    logits_MV: Tensor,
    temperature: float,
    filters: LawFilters,
    laws_MV: Tensor,
    numbers: int | None = None,
    tokens: int | None = None,
) -> None:
    if not temperature > 0.0:
        raise InputError(f"temperature {temperature}; a law needs a positive one, 0 is the largest logit itself")
    logits_MV = _rows(logits_MV, "logits")
    outcome = load_library().forethought_law(
        *_where(logits_MV),
        temperature,
        math.log(filters.min_p) if filters.min_p > 0.0 else -math.inf,
        filters.top_p,
        max(0, filters.top_k),
        int(laws_MV.dtype == torch.float64),
        laws_MV.data_ptr(),
        numbers,
        tokens,
    )
    _require_done(outcome)


def _rows(rows_MV: Tensor, what: str) -> Tensor:
    """The rows as the kernels read them: every row in one piece."""
    kind, shape = rows_MV.dtype, rows_MV.shape
    if len(shape) != 2 or shape[1] < 1 or kind not in _KINDS or rows_MV.device.type != "cpu":
        given = f"{what} of type {kind} and shape {tuple(shape)} on {rows_MV.device}"
        raise InputError(f"{given}; give (rows, vocabulary) in float32 or float64 on the CPU")
    return rows_MV if rows_MV.stride(1) == 1 else rows_MV.contiguous()


def _where(rows_MV: Tensor) -> tuple[int, int, int, int, int]:
    """Address, whether in double precision, rows, the step between them, and their length."""
    return rows_MV.data_ptr(), int(rows_MV.dtype == torch.float64), len(rows_MV), rows_MV.stride(0), rows_MV.shape[1]


def _numbers(uniforms_M: Sequence[float], count: int) -> NDArray[np.float64]:
    numbers_M = np.array(uniforms_M, dtype=np.float64)
    if numbers_M.shape != (count,):
        raise InputError(f"uniform numbers of shape {numbers_M.shape} for {count} rows; give one a row")
    return numbers_M


def _require_done(outcome: int) -> None:
    if outcome == NOT_FINITE:
        raise ForethoughtError("the model gave logits without a finite largest value; its weights or input are damaged")
    if outcome != DONE:
        raise InputError("there is not memory enough for so many rows; give fewer at once")
