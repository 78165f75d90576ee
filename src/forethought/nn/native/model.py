"""The paged executor in C++: the whole pass in one call, with every row's result independent of the others, bit by bit.

Shape suffixes: N rows, M wanted rows, K later passes of a chain, V vocabulary.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import forethought.nn.native.library as native
from forethought.core.errors import InputError
from forethought.nn.block import Block
from forethought.nn.language_model import LanguageModel
from forethought.nn.layers import Linear
from forethought.nn.native.build import NativeError
from forethought.nn.paged_cache import check_pool, check_rows
from forethought.nn.rotary import Rotary
from forethought.nn.rows import Int32, Rows

WeightType: TypeAlias = Literal["float32", "bfloat16"]
_MATRICES = ("qkv", "output", "gate", "up", "down")
_VECTORS = ("attention_norm", "query_norm", "key_norm", "mlp_norm", "qkv_bias", "output_bias", "gate_bias", "up_bias")
_PART = {name: number for number, name in enumerate(_MATRICES)}
_VECTOR = {name: number for number, name in enumerate((*_VECTORS, "down_bias"))}
_HEAD = -1
_PANEL = 32
_ANGLE_BLOCK = 1024
MAX_THREADS = 256


class NativePagedModel:
    """A PagedModel on the CPU whose weights are packed when it is built; train the model further and build anew.

    Activations and sums are float32. `dtype` "bfloat16" rounds the matrices (embedding and head included; norms and
    biases stay) and halves what a pass reads. The result of a row is the same bits in any batch, chunking, layout of
    pages and number of threads, on one machine with one compiler. Calls from several threads take turns.

    Raises:
        NativeError: the kernels cannot be built here, the model is not on the CPU or is float64, or the memory for
            weights or pages is not there.
        InputError: the pool or the number of threads is not positive, or dtype is unknown.
        StorageError: the cache of compiled libraries cannot be written.
    """

    exact = True
    fallback_reason: str | None = None

    def __init__(
        self,
        model: LanguageModel,
        num_pages: int,
        page_size: int,
        *,
        dtype: WeightType = "float32",
        num_threads: int = 1,
    ) -> None:
        _check(model, num_pages, page_size, dtype, num_threads)
        self.config, self.num_pages, self.page_size = model.config, num_pages, page_size
        self.dtype, self.num_threads = dtype, num_threads
        self._library = native.load_library()
        shape = self._shape()
        handle = self._library.forethought_create(ctypes.addressof(shape))
        if not handle:
            raise NativeError("there is not memory enough for the packed weights and the pages; give fewer pages")
        self._handle = handle
        weakref.finalize(self, self._library.forethought_destroy, handle)
        self._row_size = -(-self.config.vocab_size // _PANEL) * _PANEL
        self._logits_MV = torch.empty(0, self._row_size)
        self._rotary = Rotary(self.config.resolved_head_dim, self.config.rope_theta, self.config.rope_scaling)
        self._cosines = self._sines = torch.empty(0, self.config.resolved_head_dim // 2)
        with torch.inference_mode():
            self._load(model)
            self._extend_angles(1)

    def logits(self, rows: Rows) -> Tensor:
        """Return the logits (M, V) in float32 after the wanted rows; they hold until the next call.

        Raises:
            InputError: an array does not fit, or a token, slot, page or position is out of range.
        """
        packed = native.Packed(rows)
        if packed.num_wanted > len(self._logits_MV):
            self._logits_MV = torch.empty(packed.num_wanted, self._row_size)
        out = self._logits_MV.data_ptr()
        outcome = self._library.forethought_logits(self._handle, packed.address, out)
        while outcome != native.DONE:
            self._mend(outcome, rows, None)
            outcome = self._library.forethought_logits(self._handle, packed.address, out)
        return self._logits_MV[: packed.num_wanted, : self.config.vocab_size]

    def greedy(self, rows: Rows) -> NDArray[np.int64]:
        """Return the most likely token (M) after each of the wanted rows, the lowest id among equals.

        It is -1 where the largest logit is not finite or a logit is not a number.

        Raises:
            InputError: as `logits`.
        """
        return self._chain(rows, None)[:, 0]

    def greedy_chain(self, rows: Rows, slots_MK: Int32) -> NDArray[np.int64]:
        """Return the next K + 1 most likely tokens (M, K + 1) after each of the wanted rows, all in one call.

        It is what forethought.nn.paged.greedy_chain does, with the same tokens, keys and values.

        Raises:
            InputError: as there.
        """
        return self._chain(rows, slots_MK)

    def _chain(self, rows: Rows, slots_MK: Int32 | None) -> NDArray[np.int64]:
        packed = native.Packed(rows)
        later = None if slots_MK is None else native.int32_array(slots_MK, 2)
        if later is not None and len(later) != packed.num_wanted:
            raise InputError(f"slots for {len(later)} chains and {packed.num_wanted} wanted rows; give one line a row")
        num_later = 0 if later is None else later.shape[1]
        address = None if later is None else later.ctypes.data
        ids = np.empty((packed.num_wanted, num_later + 1), dtype=np.int64)
        arguments = (self._handle, packed.address, address, num_later, ids.ctypes.data)
        outcome = self._library.forethought_chain(*arguments)
        while outcome != native.DONE:
            self._mend(outcome, rows, later)
            outcome = self._library.forethought_chain(*arguments)
        return ids

    def _mend(self, outcome: int, rows: Rows, slots_MK: Int32 | None) -> None:
        """Name what was wrong with the rows, or make the table of angles longer."""
        check_rows(rows, self.config, self.num_pages, self.page_size, slots_MK)
        if outcome != native.MORE_ANGLES:
            raise InputError("the rows cannot be run: there is not memory enough for so many; give fewer at once")
        later = 0 if slots_MK is None else slots_MK.shape[1]
        self._extend_angles(int(rows.positions_N.max(initial=0)) + later + 1)

    def _extend_angles(self, num_positions: int) -> None:
        # Whole blocks, at least doubling: what a position's angles are never depends on who asked for more.
        start = len(self._cosines)
        stop = -(-max(num_positions, 2 * start) // _ANGLE_BLOCK) * _ANGLE_BLOCK
        blocks = [
            self._rotary(torch.arange(first, first + _ANGLE_BLOCK), torch.float32)
            for first in range(start, stop, _ANGLE_BLOCK)
        ]
        half = self.config.resolved_head_dim // 2
        cosines = torch.cat([self._cosines, *(cosine[:, 0, :half] for cosine, _ in blocks)])
        sines = torch.cat([self._sines, *(sine[:, 0, half:] for _, sine in blocks)])
        self._library.forethought_angles(self._handle, cosines.data_ptr(), sines.data_ptr(), stop)
        self._cosines, self._sines = cosines, sines

    def _shape(self) -> native.Shape:
        config = self.config
        return native.Shape(
            config.vocab_size,
            config.hidden_size,
            config.num_layers,
            config.num_heads,
            config.resolved_kv_heads,
            config.resolved_head_dim,
            config.resolved_intermediate_size,
            self.num_pages,
            self.page_size,
            self.num_threads,
            int(self.dtype == "bfloat16"),
            config.max_positions,
            config.norm_eps,
        )

    def _load(self, model: LanguageModel) -> None:
        for layer, block in enumerate(model.blocks):
            if isinstance(block, Block):
                self._load_block(layer, block)
        self._vector(_HEAD, "attention_norm", model.norm.weight)
        table = model.embedding.weight
        self._matrix(_HEAD, "qkv", table if model.unembedding is None else model.unembedding.weight)
        kept = torch.bfloat16 if self.dtype == "bfloat16" else torch.float32
        self._table = table.detach().to(kept).contiguous()
        address = self._table.data_ptr()
        both = (None, address) if self.dtype == "bfloat16" else (address, None)
        self._library.forethought_table(self._handle, *both)

    def _load_block(self, layer: int, block: Block) -> None:
        attention, mlp = block.attention, block.mlp
        inputs = (attention.query, attention.key, attention.value)
        self._matrix(layer, "qkv", torch.cat([each.weight.float() for each in inputs]))
        biases = [each.bias.float() for each in inputs if each.bias is not None]
        self._vector(layer, "qkv_bias", torch.cat(biases) if biases else None)
        named: tuple[tuple[str, Linear], ...] = (
            ("output", attention.output),
            ("gate", mlp.gate),
            ("up", mlp.up),
            ("down", mlp.down),
        )
        for name, linear in named:
            self._matrix(layer, name, linear.weight)
            self._vector(layer, f"{name}_bias", linear.bias)
        self._vector(layer, "attention_norm", block.attention_norm.weight)
        self._vector(layer, "mlp_norm", block.mlp_norm.weight)
        self._vector(layer, "query_norm", None if attention.query_norm is None else attention.query_norm.weight)
        self._vector(layer, "key_norm", None if attention.key_norm is None else attention.key_norm.weight)

    def _matrix(self, layer: int, part: str, weight: Tensor) -> None:
        values = weight.detach().float().contiguous()
        self._library.forethought_matrix(self._handle, layer, _PART[part], values.data_ptr(), *values.shape)

    def _vector(self, layer: int, part: str, vector: Tensor | None) -> None:
        values = None if vector is None else vector.detach().float().contiguous()
        address, size = (None, 0) if values is None else (values.data_ptr(), len(values))
        self._library.forethought_vector(self._handle, layer, _VECTOR[part], address, size)


def _check(model: LanguageModel, num_pages: int, page_size: int, dtype: str, num_threads: int) -> None:
    check_pool(num_pages, page_size)
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"dtype {dtype!r} of the native weights; give 'float32' or 'bfloat16'")
    if not 1 <= num_threads <= MAX_THREADS:
        raise InputError(f"num_threads {num_threads} must be between 1 and {MAX_THREADS}")
    weight = model.embedding.weight
    if weight.device.type != "cpu" or weight.dtype == torch.float64:
        raise NativeError(
            f"the native backend runs float32 and narrower models on the CPU; this one is {weight.dtype} on "
            f"{weight.device}. Use the torch backend"
        )
