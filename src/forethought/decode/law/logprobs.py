"""Log-probabilities as reported to users: the model's own, before temperature, filters, biases and penalties.

Shape suffixes: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from forethought.decode.draft import TokenLogprobs


def token_logprobs(logits_NV: Tensor, tokens: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """Return what is reported of each token, given the raw logits (N, V) of its place.

    The rank counts the tokens that are likelier, plus one; of equally likely ones the lowest ids come first in `top`.
    """
    # Softmax walks each row by itself, so the figures do not depend on what else was asked for.
    logs_NV = torch.log_softmax(logits_NV.detach().to(torch.float64), dim=-1).cpu().numpy()
    return [
        TokenLogprobs(float(logs_V[token]), int((logs_V > logs_V[token]).sum()) + 1, _top(logs_V, num_top))
        for logs_V, token in zip(logs_NV, tokens, strict=True)
    ]


def _top(logs_V: np.ndarray, count: int) -> list[tuple[int, float]]:
    if count == 0:
        return []
    place = max(len(logs_V) - count, 0)
    least = np.partition(logs_V, place)[place]
    candidates = np.flatnonzero(logs_V >= least)
    order = np.lexsort((candidates, -logs_V[candidates]))[:count]
    return [(int(token), float(logs_V[token])) for token in candidates[order]]
