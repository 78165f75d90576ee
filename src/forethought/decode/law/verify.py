"""The one verification of drafted tokens, pure and used by every path at every temperature.

Speculative sampling: a token x drawn from q is kept with probability min(1, p(x) / q(x)); the first one not kept is
replaced by a draw from max(0, p - q), normalised; if all are kept, one more is drawn from p. The output law is p's for
any q, as long as q is the law that the token was really drawn from and the draws here are independent of the draft's
(Leviathan et al., arXiv 2211.17192, theorem 1; Chen et al., arXiv 2302.01318). A greedy target is the point mass at
its argmax and needs no case of its own.

Shape suffixes: B rows, K drafted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forethought.nn.native import law as kernels


@dataclass(frozen=True)
class Verdict:
    """The outcome of one verification: how many drafted tokens were kept, and the token that the target adds."""

    accepted: int
    bonus: int


def accept_probabilities(target_KV: Tensor, draft_KV: Tensor | None, tokens_K: Tensor) -> Tensor:
    """Return the probability (K) of keeping each drafted token, given that all before it were kept.

    A token to which its own draft law gives no mass cannot have been drawn from it and is never kept. Without draft
    laws the tokens were chosen without chance, each from the point mass on itself.
    """
    target_K = target_KV.gather(-1, tokens_K.unsqueeze(-1)).squeeze(-1)
    if draft_KV is None:
        return target_K.clamp(max=1.0)
    draft_K = draft_KV.gather(-1, tokens_K.unsqueeze(-1)).squeeze(-1)
    # 0 / 0 becomes 0 as well: no mass of its own.
    return torch.where(draft_K > 0.0, (target_K / draft_K).clamp(max=1.0), 0.0)


def residual(target_V: Tensor, draft_V: Tensor) -> Tensor:
    """Return the law (..., V) of the token that replaces a rejected one: max(0, p - q), normalised.

    Where the two laws are equal a rejection has probability zero, and the target's own law is returned.
    """
    excess_V = (target_V - draft_V).clamp(min=0.0)
    total_V1 = excess_V.sum(dim=-1, keepdim=True)
    equal_V1 = total_V1 <= 0.0
    return torch.where(equal_V1, target_V, excess_V / torch.where(equal_V1, torch.ones_like(total_V1), total_V1))


def draw(probabilities_BV: Tensor, uniforms_B: Sequence[float]) -> list[int]:
    """Return for each row the token at which the cumulative law passes a uniform number from [0, 1).

    A token without mass is never returned, whatever the rounding.
    """
    if probabilities_BV.device.type == "cpu" and kernels.has_laws():
        return kernels.draw(probabilities_BV, uniforms_B)
    cumulative_BV = probabilities_BV.to(torch.float64).cumsum(dim=-1)
    if cumulative_BV.device.type != "cpu":
        # An accelerator's parallel scan need not be monotone to the last bit.
        cumulative_BV = cumulative_BV.cummax(dim=-1).values
    uniforms_B1 = torch.tensor(uniforms_B, dtype=torch.float64, device=cumulative_BV.device).unsqueeze(-1)
    return torch.searchsorted(cumulative_BV, uniforms_B1 * cumulative_BV[:, -1:], right=True).squeeze(-1).tolist()


def verify(
    target_probabilities_KV: Tensor,
    draft_probabilities_KV: Tensor | None,
    draft_tokens_K: Tensor,
    generator: np.random.Generator,
) -> Verdict:
    """Decide how many of K drafted tokens stay and which token follows them.

    The target gives K + 1 rows of probabilities (row i after i drafted tokens), the draft the K rows that its tokens
    were drawn from, or None where they were chosen without chance. K may be 0. The generator gives exactly K + 1
    uniform numbers, and must not be the draft's.
    """
    num_drafted = len(draft_tokens_K)
    uniforms = generator.random(num_drafted + 1)
    accepted = 0
    if num_drafted:
        accept_K = accept_probabilities(target_probabilities_KV[:num_drafted], draft_probabilities_KV, draft_tokens_K)
        accepted = num_kept(uniforms[:num_drafted], accept_K)
    law_V = target_probabilities_KV[accepted]
    if accepted < num_drafted:
        token_1 = draft_tokens_K[accepted : accepted + 1]
        law_V = residual(law_V, _law_of(draft_probabilities_KV, accepted, token_1, law_V))
    return Verdict(accepted, draw(law_V.unsqueeze(0), [float(uniforms[-1])])[0])


def verify_greedy(target_argmax: Sequence[int], draft_tokens: Sequence[int]) -> Verdict:
    """Decide as `verify` does where the target's K + 1 laws are point masses, given the tokens that they stand on.

    It needs no chance: a drafted token is kept with probability 1 or 0, and what follows is the target's own. A token
    that its draft's law gave no mass is not looked for here; at temperature 0 it could only be the right one.
    """
    accepted = 0
    for token in draft_tokens:
        if token != target_argmax[accepted]:
            break
        accepted += 1
    return Verdict(accepted, target_argmax[accepted])


def num_kept(uniforms_K: np.ndarray, accept_K: Tensor) -> int:
    """Return how many tokens come before the first whose uniform number is not below its accept probability."""
    kept_K = uniforms_K < accept_K.cpu().numpy()
    return len(kept_K) if kept_K.all() else int(kept_K.argmin())


def _law_of(draft_KV: Tensor | None, row: int, token_1: Tensor, like_V: Tensor) -> Tensor:
    """The law that a drafted token was drawn from; the point mass on it where it was chosen."""
    return torch.zeros_like(like_V).scatter_(-1, token_1, 1.0) if draft_KV is None else draft_KV[row]
