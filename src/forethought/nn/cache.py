"""The memory of past keys and values, behind one protocol that hides how it is stored.

Legend: B batch rows, K key-value heads, T new tokens, S cached and new tokens, D width of one head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from forethought.core.errors import InputError
from forethought.nn.config import TransformerConfig


class KeyValueCache(Protocol):
    """What a model asks of a cache. Keys come in after the rotation.

    In one forward pass every layer appends the same number of tokens; the model then commits them together, so a pass
    that fails half-way leaves the cache as it was.
    """

    @property
    def length(self) -> int:
        """The number of committed tokens; the next token's position."""
        ...

    def append(self, layer: int, keys_BKTD: Tensor, values_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values behind the committed ones and return keys_BKSD, values_BKSD."""
        ...

    def commit(self, num_tokens: int) -> None:
        """Make the tokens that every layer has just appended part of the past."""
        ...

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on."""
        ...

    def select(self, rows: Tensor | Sequence[int]) -> None:
        """Make the batch consist of these rows of the present one, in this order; a row may come more than once."""
        ...


class DenseCache:
    """A cache in two preallocated tensors a layer, each [B, K, capacity, D]; for inference only.

    Raises:
        InputError: batch_size or capacity is not positive.
    """

    def __init__(
        self,
        config: TransformerConfig,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1 or capacity < 1:
            raise InputError(f"batch_size {batch_size} and capacity {capacity} must be at least 1")
        shape = (batch_size, config.resolved_kv_heads, capacity, config.resolved_head_dim)
        # Built outside inference mode even when called inside it: such tensors could not be written to later.
        with torch.inference_mode(False):
            self._keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
            self._values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self._capacity = capacity
        self._length = 0
        self._appended = [0] * config.num_layers

    @property
    def length(self) -> int:
        """The number of committed tokens."""
        return self._length

    @property
    def capacity(self) -> int:
        """The largest number of tokens it can hold."""
        return self._capacity

    @property
    def batch_size(self) -> int:
        """The number of rows."""
        return self._keys[0].shape[0]

    def append(self, layer: int, keys_BKTD: Tensor, values_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values behind the committed ones and return keys_BKSD, values_BKSD.

        The returned tensors are views that later calls overwrite. Calling again before the commit starts over.

        Raises:
            InputError: the capacity is exceeded, shapes or types do not fit, or the tensors carry gradients.
        """
        self._check(keys_BKTD)
        self._check(values_BKTD)
        num_tokens = keys_BKTD.shape[2]
        end = self._length + num_tokens
        self._keys[layer][:, :, self._length : end] = keys_BKTD
        self._values[layer][:, :, self._length : end] = values_BKTD
        self._appended[layer] = num_tokens
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def commit(self, num_tokens: int) -> None:
        """Make the tokens that every layer has just appended part of the past.

        Raises:
            InputError: some layer has not appended exactly this many tokens.
        """
        if num_tokens < 0 or any(appended != num_tokens for appended in self._appended):
            raise InputError(
                f"commit of {num_tokens} tokens, but the layers appended {sorted(set(self._appended))}; "
                "commit what every layer has appended since the last commit"
            )
        self._length += num_tokens
        self._appended = [0] * len(self._appended)

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on.

        Raises:
            InputError: the length is negative or beyond the committed one.
        """
        if not 0 <= length <= self._length:
            raise InputError(f"cannot truncate to {length} tokens; the cache holds {self._length}")
        self._length = length
        self._appended = [0] * len(self._appended)

    def select(self, rows: Tensor | Sequence[int]) -> None:
        """Make the batch consist of these rows of the present one, in this order; a row may come more than once.

        Raises:
            InputError: no row is named, or one lies outside the batch.
        """
        if isinstance(rows, Tensor) and rows.dtype == torch.bool:
            raise InputError("rows is a boolean mask; give the numbers of the rows, for example mask.nonzero()[:, 0]")
        chosen = [int(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows)]
        if not chosen or not all(0 <= row < self.batch_size for row in chosen):
            raise InputError(f"rows {chosen} must name at least one of the rows 0 to {self.batch_size - 1}")
        with torch.inference_mode(False), torch.no_grad():
            index = torch.tensor(chosen, device=self._keys[0].device)
            self._keys = [self._gather(stored, index) for stored in self._keys]
            self._values = [self._gather(stored, index) for stored in self._values]
        self._appended = [0] * len(self._appended)

    def _gather(self, stored: Tensor, index: Tensor) -> Tensor:
        fresh = stored.new_empty(len(index), *stored.shape[1:])
        fresh[:, :, : self._length] = stored[:, :, : self._length].index_select(0, index)
        return fresh

    def _check(self, new_BKTD: Tensor) -> None:
        batch, heads, capacity, width = self._keys[0].shape
        num_tokens = new_BKTD.shape[2]
        if self._length + num_tokens > capacity:
            raise InputError(
                f"the cache holds {self._length} of at most {capacity} tokens; {num_tokens} more do not fit. "
                "Give a larger capacity, or truncate"
            )
        if new_BKTD.shape != (batch, heads, num_tokens, width):
            raise InputError(
                f"keys or values of shape {tuple(new_BKTD.shape)} do not fit a cache of {batch} rows, {heads} "
                f"key-value heads and head width {width}; build it with the model's config and the batch's size"
            )
        if new_BKTD.dtype != self._keys[0].dtype:
            raise InputError(
                f"the model computes in {new_BKTD.dtype} and the cache stores {self._keys[0].dtype}; "
                "build the cache with the same dtype"
            )
        if new_BKTD.requires_grad:
            raise InputError("a cache keeps no gradients; run the model under torch.inference_mode() or no_grad()")
