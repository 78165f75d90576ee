"""What a language model is trained to do: predict the next token, or a teacher's law of it.

Legend: B batch, T time, V vocabulary, N = B*T positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from forethought.data import IGNORED_TARGET, Batch
from forethought.nn import document_mask


def logits_of(model: nn.Module, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return logits_NV in fp32 and targets_N of a batch; documents do not see each other where the batch says so."""
    tokens_BT = torch.from_numpy(batch.tokens_BT).to(device)
    targets_BT = torch.from_numpy(batch.targets_BT).to(device)
    if batch.documents_BT is None:
        logits_BTV = model(tokens_BT)
    else:
        logits_BTV = model(tokens_BT, mask=document_mask(torch.from_numpy(batch.documents_BT).to(device)))
    return logits_BTV.float().flatten(0, 1), targets_BT.flatten()


def next_token_loss(model: nn.Module, batch: Batch, *, device: torch.device) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return the mean cross-entropy in nats a token, and no further figures."""
    logits_NV, targets_N = logits_of(model, batch, device)
    return functional.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED_TARGET), {}


def distillation_loss(
    model: nn.Module,
    batch: Batch,
    *,
    teacher: nn.Module,
    share: float,
    temperature: float,
    device: torch.device,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return (1 - share) * CE + share * temperature^2 * KL(teacher || student), with both parts as figures.

    Both are means over the positions whose target counts.
    The temperature softens both laws; its square keeps the gradients' size (Hinton et al., arXiv 1503.02531).
    """
    logits_NV, targets_N = logits_of(model, batch, device)
    with torch.no_grad():
        teacher_NV, _ = logits_of(teacher, batch, device)
        law_NV = functional.log_softmax(teacher_NV / temperature, dim=-1)
    student_NV = functional.log_softmax(logits_NV / temperature, dim=-1)
    # Asked of the array, which is in memory: only the last window of an epoch has positions that are filling.
    if (batch.targets_BT == IGNORED_TARGET).any():
        counts_N = targets_N != IGNORED_TARGET
        law_NV, student_NV = law_NV[counts_N], student_NV[counts_N]
    divergence = functional.kl_div(student_NV, law_NV, reduction="batchmean", log_target=True)
    plain = functional.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED_TARGET)
    total = (1.0 - share) * plain + share * temperature**2 * divergence
    return total, {"text_loss": plain.detach(), "divergence": divergence.detach()}
