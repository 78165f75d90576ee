"""From scored candidates to the actions to execute: the best, the mean of the best, or a soft mean.

Taking the best of many amplifies the errors of the score; a mean over the best ones is the cure where it hurts.

Legend: B environments, N candidates, H steps of the horizon, A numbers an action.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Ranking = Callable[[Tensor, Tensor, int, float], Tensor]


def rank(name: str, actions_BNHA: Tensor, costs_BN: Tensor, *, top_k: int, temperature: float) -> Tensor:
    """Return the actions (B, H, A) that a ranking makes of the candidates; one that costs infinitely counts nothing."""
    # A mean weighs what is not finite with 0, and 0 times NaN is NaN.
    safe_BNHA = actions_BNHA.where(actions_BNHA.isfinite(), torch.zeros_like(actions_BNHA))
    return RANKINGS[name](safe_BNHA, costs_BN, top_k, temperature)


def pick(values: Tensor, index_B: Tensor) -> Tensor:
    """Return values[b, index_B[b]] for every environment."""
    return values[torch.arange(len(index_B), device=values.device), index_B]


def _best(actions_BNHA: Tensor, costs_BN: Tensor, _top_k: int, _temperature: float) -> Tensor:
    return pick(actions_BNHA, costs_BN.argmin(1))


def _top_k(actions_BNHA: Tensor, costs_BN: Tensor, top_k: int, _temperature: float) -> Tensor:
    chosen = costs_BN.topk(min(top_k, costs_BN.shape[1]), dim=1, largest=False)
    weights_BK = chosen.values.isfinite().to(actions_BNHA.dtype)
    # With nothing finite the first stands for all; the planner says that the plan is worth nothing.
    weights_BK[:, 0] = 1.0
    picked_BKHA = actions_BNHA.gather(1, chosen.indices[..., None, None].expand(-1, -1, *actions_BNHA.shape[2:]))
    return torch.einsum("bk,bkha->bha", weights_BK / weights_BK.sum(1, keepdim=True), picked_BKHA)


def _soft(actions_BNHA: Tensor, costs_BN: Tensor, _top_k: int, temperature: float) -> Tensor:
    low_B1 = costs_BN.min(1, keepdim=True).values
    excess_BN = torch.where(costs_BN.isfinite(), costs_BN - low_B1, torch.inf)
    finite_BN = excess_BN.where(excess_BN.isfinite(), torch.zeros_like(excess_BN))
    # In units of the mean excess, so that one temperature serves every objective.
    unit_B1 = finite_BN.sum(1, keepdim=True) / excess_BN.isfinite().sum(1, keepdim=True).clamp(min=1)
    logits_BN = -excess_BN / (temperature * unit_B1).clamp(min=1e-12)
    weights_BN = logits_BN.nan_to_num(nan=0.0, neginf=-1e30).softmax(1)
    return torch.einsum("bn,bnha->bha", weights_BN.to(actions_BNHA), actions_BNHA)


RANKINGS: dict[str, Ranking] = {"best": _best, "soft": _soft, "top_k": _top_k}
