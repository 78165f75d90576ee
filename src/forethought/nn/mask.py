"""Which token may attend to which: boolean masks, True where attention is kept.

Legend: B batch, H heads, T query tokens, S key tokens (cached ones first).
"""

from __future__ import annotations

import torch
from torch import Tensor

from forethought.core.errors import InputError


def causal_mask(num_queries: int, num_keys: int, device: torch.device | str | None = None) -> Tensor:
    """Return mask_TS in which the queries are the last of the keys and see themselves and what came before."""
    keep = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return keep.tril(num_keys - num_queries)


def document_mask(documents_BT: Tensor) -> Tensor:
    """Return mask_BTS that keeps attention inside a document; documents_BT holds a document's number at each token."""
    return documents_BT[:, :, None] == documents_BT[:, None, :]


def document_positions(documents_BT: Tensor) -> Tensor:
    """Return positions_BT that start at 0 with each run of equal document numbers."""
    index_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    starts_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    starts_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    first_BT = torch.where(starts_BT, index_T, 0).cummax(dim=1).values
    return index_T - first_BT


def resolve_mask(
    mask: Tensor | None,
    *,
    causal: bool,
    batch: int,
    num_heads: int,
    num_queries: int,
    num_keys: int,
    device: torch.device,
) -> tuple[Tensor | None, bool]:
    """Return (mask [B or 1, H or 1, T, S] or None, is_causal) as scaled_dot_product_attention takes them.

    A given mask of shape TS, BTS or BHTS narrows the causal one; it never widens it. A query that keeps no key
    gets a zero output.

    Raises:
        InputError: the mask is not boolean, its last two axes are not (num_queries, num_keys), or an axis of rows or
            heads is neither 1 nor their number.
    """
    if mask is None:
        if not causal or num_queries == 1:
            return None, False
        if num_queries == num_keys:
            return None, True
        return causal_mask(num_queries, num_keys, device)[None, None], False
    if mask.dtype != torch.bool or not 2 <= mask.ndim <= 4 or mask.shape[-2:] != (num_queries, num_keys):
        raise InputError(
            f"mask has type {mask.dtype} and shape {tuple(mask.shape)}; give a boolean one (True = attend) "
            f"whose last two axes are (queries, keys) = ({num_queries}, {num_keys}), cached keys first"
        )
    full = mask[(None,) * (4 - mask.ndim)] if mask.ndim != 3 else mask[:, None]
    if full.shape[0] not in (1, batch) or full.shape[1] not in (1, num_heads):
        raise InputError(
            f"mask has shape {tuple(mask.shape)} for {batch} rows and {num_heads} heads; "
            "give (queries, keys), (rows or 1, queries, keys) or (rows or 1, heads or 1, queries, keys)"
        )
    if causal and num_queries > 1:
        full = full & causal_mask(num_queries, num_keys, full.device)
    return full, False
