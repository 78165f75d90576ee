"""Executors of paged models: a portable one, a native one for CPUs, one of static shapes for accelerators; one door.

Shape suffixes: N rows, M wanted rows, K later passes of a chain, E extra slots, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.core.errors import InputError, StorageError
from forethought.nn.graphed import GraphedPagedModel
from forethought.nn.language_model import LanguageModel
from forethought.nn.native import NativeError, NativePagedModel
from forethought.nn.native.model import WeightType
from forethought.nn.paged_cache import PagedCache, check_rows
from forethought.nn.rows import Int32, PagedModel, Rows

Backend: TypeAlias = Literal["auto", "native", "torch", "graphed"]


class ChainModel(PagedModel, Protocol):
    """A paged model that also runs chains of greedy tokens."""

    fallback_reason: str | None

    def greedy_chain(self, rows: Rows, slots_MK: Int32) -> NDArray[np.int64]:
        """Return what forethought.nn.paged.greedy_chain returns."""
        ...


class TorchPagedModel:
    """A PagedModel of plain PyTorch on any device and in any type; the model's own modules do the work.

    It takes the weights as they are at each call. Rows are not bit-identical across batches (`exact` is false), and
    what is no number in one row may spread to the rows of its pass.

    Raises:
        InputError: there are no pages, or too many.
    """

    exact = False
    fallback_reason: str | None = None

    def __init__(self, model: LanguageModel, num_pages: int, page_size: int) -> None:
        weight = model.embedding.weight
        self.config, self.num_pages, self.page_size = model.config, num_pages, page_size
        self._model = model
        self._cache = PagedCache(model.config, num_pages, page_size, weight.dtype, weight.device)

    @torch.inference_mode()
    def logits(self, rows: Rows) -> Tensor:
        """Return the logits (M, V) in float32 after the wanted rows.

        Raises:
            InputError: an array does not fit, or a token, slot, page or position is out of range.
        """
        check_rows(rows, self.config, self.num_pages, self.page_size)
        device = self._model.embedding.weight.device
        if not len(rows.tokens_N):
            return torch.empty(0, self.config.vocab_size, device=device)
        view = self._cache.view(rows)
        x_1ND = self._model.embedding(_index(rows.tokens_N, device)[None])
        rotation = self._model.rotary(_index(rows.positions_N, device), x_1ND.dtype)
        for block in self._model.blocks:
            # The view's mask is the whole truth: who sees whom goes by slots, not by places in the pass.
            x_1ND = block(x_1ND, rotary=rotation, mask=view.mask_NU, cache=view)
        wanted_MD = x_1ND[0, _index(rows.logits_M, device)]
        return self._model.head(self._model.norm(wanted_MD)).float()

    def greedy(self, rows: Rows) -> NDArray[np.int64]:
        """Return the most likely token (M) after each of the wanted rows, the lowest id among equals.

        It is -1 where the largest logit is not finite or a logit is not a number.

        Raises:
            InputError: as `logits`.
        """
        logits_MV = self.logits(rows).cpu().numpy()
        best_M = logits_MV.argmax(axis=1)  # the first of equals, and the first that is no number
        finite_M = np.isfinite(logits_MV[np.arange(len(best_M)), best_M])
        return np.where(finite_M, best_M, -1).astype(np.int64)

    def greedy_chain(self, rows: Rows, slots_MK: Int32) -> NDArray[np.int64]:
        """Return what forethought.nn.paged.greedy_chain returns.

        Raises:
            InputError: as there.
        """
        return greedy_chain(self, rows, slots_MK)


def greedy_chain(model: PagedModel, rows: Rows, slots_MK: Int32) -> NDArray[np.int64]:
    """Return the next K + 1 most likely tokens (M, K + 1) after each of the wanted rows, by K + 1 calls of `greedy`.

    The first pass runs the rows as they are. Pass k feeds every chain the token that it drew last, one position on, at
    slot slots_MK[:, k - 1]; the last token drawn is not fed. Without `extra_NE` a chain is the end of its sequence:
    each pass sees one more of its pages' positions, and the slots are those positions' places. With `extra_NE` (which
    may be of width 0) it is a branch: what it sees of its pages stays, and each pass sees the new slot besides. A chain
    whose logits are not finite ends, with -1 from there on.

    Raises:
        InputError: an array does not fit, a number is out of range, or a slot is written twice.
    """
    check_rows(rows, model.config, model.num_pages, model.page_size, slots_MK)
    num_chains, num_later = slots_MK.shape
    ids_MK = np.full((num_chains, num_later + 1), -1, dtype=np.int64)
    ids_MK[:, 0] = model.greedy(rows)
    for step in range(1, num_later + 1):
        alive = np.flatnonzero(ids_MK[:, step - 1] >= 0)
        if not len(alive):
            break
        ids_MK[alive, step] = model.greedy(_next_pass(rows, slots_MK, ids_MK, alive, step))
    return ids_MK


def _next_pass(rows: Rows, slots_MK: Int32, ids_MK: NDArray[np.int64], alive: NDArray[np.intp], step: int) -> Rows:
    row = rows.logits_M[alive]
    branch = rows.extra_NE is not None
    return Rows(
        tokens_N=ids_MK[alive, step - 1].astype(np.int32),
        positions_N=rows.positions_N[row] + np.int32(step),
        slots_N=np.ascontiguousarray(slots_MK[alive, step - 1]),
        sequence_N=rows.sequence_N[row],
        visible_N=rows.visible_N[row] + np.int32(0 if branch else step),
        pages_SP=rows.pages_SP,
        logits_M=np.arange(len(alive), dtype=np.int32),
        extra_NE=None if rows.extra_NE is None else np.hstack([rows.extra_NE[row], slots_MK[alive, :step]]),
    )


def open_paged_model(
    model: LanguageModel,
    *,
    num_pages: int,
    page_size: int,
    backend: Backend = "auto",
    dtype: WeightType | None = None,
    num_threads: int = 1,
) -> ChainModel:
    """Return the best executor of a model with a pool of pages.

    "native" needs a model on the CPU and a C++ compiler. "graphed" captures passes of static shapes as CUDA graphs and
    runs step by step where there are none. "auto" takes "graphed" on an accelerator, else "native", else "torch", and
    says in `fallback_reason` why the one before could not be had. `dtype` is that of the weights (None: bfloat16 where
    the model's are, else float32, or any that the model has under "torch" and "graphed"); with "bfloat16" "native" and
    "torch" compute the same, in float32 from rounded matrices, and "graphed" computes in bfloat16 throughout.
    Pages of a multiple of 16 positions are the fastest natively. `num_threads` is for "native"; PyTorch has its own.

    Raises:
        InputError: an unknown backend or dtype, or no pages.
        NativeError: backend is "native" and the kernels cannot be used here; the message says why.
        StorageError: backend is "native" and the cache of compiled libraries cannot be written.
    """
    if backend not in get_args(Backend):
        raise InputError(f"backend {backend!r}; give one of {', '.join(get_args(Backend))}")
    if dtype not in (None, "float32", "bfloat16"):
        raise InputError(f"dtype {dtype!r} of the weights; give 'float32', 'bfloat16' or None")
    if backend == "graphed" or (backend == "auto" and model.embedding.weight.device.type != "cpu"):
        kept = model if dtype is None else copy.deepcopy(model).to(getattr(torch, dtype))
        return GraphedPagedModel(kept, num_pages, page_size)
    reason = None
    if backend != "torch":
        narrow = model.embedding.weight.dtype == torch.bfloat16
        kind: WeightType = ("bfloat16" if narrow else "float32") if dtype is None else dtype
        try:
            return NativePagedModel(model, num_pages, page_size, dtype=kind, num_threads=num_threads)
        except (NativeError, StorageError) as error:
            if backend == "native":
                raise
            reason = str(error)
    fallback = TorchPagedModel(_of_type(model, dtype), num_pages, page_size)
    fallback.fallback_reason = reason
    return fallback


def _of_type(model: LanguageModel, dtype: WeightType | None) -> LanguageModel:
    """The model in float32, its matrices rounded to bfloat16 where that is asked; itself where nothing changes."""
    if dtype is None or (dtype == "float32" and model.embedding.weight.dtype == torch.float32):
        return model
    changed = copy.deepcopy(model).float()
    return rounded(changed) if dtype == "bfloat16" else changed


@torch.no_grad()
def rounded(model: LanguageModel) -> LanguageModel:
    """Round every matrix of a model to bfloat16 in place, keeping its type; norms and biases stay. Return the model."""
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.copy_(parameter.to(torch.bfloat16))
    return model


def _index(array: Int32, device: torch.device) -> Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(device)
