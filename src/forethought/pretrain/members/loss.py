"""The losses of stacked members: each member's mean, summed, so that every member's gradient is that of it alone.

Legend: K members, B batch, T time, N = B*T, V vocabulary, J kept teacher entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from forethought.data import IGNORED_TARGET
from forethought.nn import document_mask
from forethought.pretrain.batching import MembersBatch
from forethought.pretrain.config import DistillationConfig
from forethought.pretrain.labels import SoftLabels
from forethought.pretrain.members.config import FrontierConfig, Member
from forethought.train.loop import Loss


def members_loss(
    members: Sequence[Member],
    frontier: FrontierConfig,
    *,
    labels: SoftLabels | None,
    distillation: DistillationConfig,
    device: torch.device,
) -> Loss[MembersBatch]:
    """Return the loss of a batched run over (stacked model, batch), with each member's own as a figure."""
    seeds = [member.seed for member in members]
    return partial(_loss, seeds=seeds, frontier=frontier, labels=labels, distillation=distillation, device=device)


def _loss(
    model: nn.Module,
    batch: MembersBatch,
    *,
    seeds: list[int],
    frontier: FrontierConfig,
    labels: SoftLabels | None,
    distillation: DistillationConfig,
    device: torch.device,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    targets_KN = torch.from_numpy(batch.targets_KBT).to(device).flatten(1)
    logits_KNV, ahead_KNV = model(
        torch.from_numpy(batch.tokens_KBT).to(device), mask_KBTT=_mask(batch, device), noise=(seeds, batch.index)
    )
    text_K = cross_entropy(logits_KNV, targets_KN)
    figures = {f"loss_{k}": value.detach() for k, value in enumerate(text_K)}
    total_K = text_K
    if labels is not None and batch.windows_KB is not None:
        soft_K = labels.divergence(logits_KNV, targets_KN, batch.windows_KB)
        total_K = (1.0 - distillation.share) * text_K + distillation.share * labels.temperature**2 * soft_K
        figures |= {f"divergence_{k}": value.detach() for k, value in enumerate(soft_K)}
    if ahead_KNV is not None:
        further_KN = _next_targets(batch, device)
        total_K = (1.0 - frontier.ahead_share) * total_K + frontier.ahead_share * cross_entropy(ahead_KNV, further_KN)
    return total_K.sum(), figures


def cross_entropy(logits_KNV: Tensor, targets_KN: Tensor) -> Tensor:
    """Return each member's mean loss (K) in nats a token over the targets that count."""
    each_KN = functional.cross_entropy(
        logits_KNV.float().flatten(0, 1), targets_KN.flatten(), ignore_index=IGNORED_TARGET, reduction="none"
    ).view(targets_KN.shape)
    return each_KN.sum(1) / (targets_KN != IGNORED_TARGET).sum(1).clamp_min(1)


def _next_targets(batch: MembersBatch, device: torch.device) -> Tensor:
    """The targets one token further: a window's last position has none."""
    targets_KBT = torch.from_numpy(batch.targets_KBT).to(device)
    filling = torch.full_like(targets_KBT[..., :1], IGNORED_TARGET)
    return torch.cat((targets_KBT[..., 1:], filling), dim=-1).flatten(1)


def _mask(batch: MembersBatch, device: torch.device) -> Tensor | None:
    if batch.documents_KBT is None:
        return None
    documents_KBT = torch.from_numpy(batch.documents_KBT).to(device)
    own = document_mask(documents_KBT.flatten(0, 1)).unflatten(0, documents_KBT.shape[:2])
    length = documents_KBT.shape[-1]
    return own & torch.ones(length, length, dtype=torch.bool, device=device).tril()
