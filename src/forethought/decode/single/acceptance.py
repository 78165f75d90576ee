"""How well a draft fits a target on given text, both reading the text itself (teacher forcing).

Shape suffixes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.core.errors import InputError
from forethought.decode.law.sampling import SamplingParams, distribution
from forethought.decode.single.cached import check_same_vocabulary
from forethought.nn import LanguageModel


@dataclass(frozen=True)
class Acceptance:
    """Means over `num_tokens` predictions: greedy agreement, and the probability that a drafted token is kept."""

    num_tokens: int
    greedy_agreement: float
    overlap: float


def acceptance(
    model: LanguageModel, draft: LanguageModel, tokens_BT: Tensor, params: SamplingParams | None = None
) -> Acceptance:
    """Compare the laws of draft and target after every prefix of every text.

    `greedy_agreement` is how often both have the same most likely token. `overlap` is the mean of
    sum_x min(p(x), q(x)), the chance that a token of the draft is kept, with both laws under `params` (temperature 1
    unless given).

    Raises:
        ConfigError: draft and target have different vocabularies.
        InputError: the tokens do not fit the models.
    """
    check_same_vocabulary(model, draft)
    if tokens_BT.numel() == 0:
        raise InputError(f"tokens have shape {tuple(tokens_BT.shape)}; give at least one text of at least one token")
    params = params or SamplingParams()
    agreed, overlap = 0, 0.0
    for tokens_T in tokens_BT:
        with torch.inference_mode():
            target_TV, draft_TV = model(tokens_T.unsqueeze(0))[0], draft(tokens_T.unsqueeze(0))[0]
        agreed += int((target_TV.argmax(dim=-1) == draft_TV.argmax(dim=-1)).sum())
        both_TV = torch.minimum(distribution(target_TV, params), distribution(draft_TV, params))
        overlap += float(both_TV.sum())
    num_tokens = tokens_BT.numel()
    return Acceptance(num_tokens, agreed / num_tokens, overlap / num_tokens)
