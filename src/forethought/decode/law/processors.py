"""What a request does to its logits before the law is made: biases, bans and penalties, in vLLM's order.

Every row is processed as if the drafted tokens before it were output already, for that is when its law counts. What a
row becomes depends on the tokens before it alone, so speculation changes no law.

Shape suffixes: N rows (the drafted tokens and one), V vocabulary, U the tokens that penalties touch, T output tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.decode.law.sampling import SamplingParams

Mask = NDArray[np.bool_]


class Processors:
    """The processors of one request; they follow its output, which only ever grows.

    `stop_token_ids` and, unless the request ignores them, `eos_token_ids` cannot come before `min_tokens`.
    """

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], eos_token_ids: Collection[int], vocabulary_size: int
    ) -> None:
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)}
        bias = params.logit_bias or {}
        self._params = params
        self._ends = [token for token in sorted(ends) if token < vocabulary_size]
        self._bias_ids, self._bias = list(bias), list(bias.values())
        self._in_prompt_V = np.zeros(vocabulary_size, dtype=np.bool_)
        self._in_prompt_V[list(prompt)] = True
        self._counts_V = np.zeros(vocabulary_size, dtype=np.int32)
        self._num_counted = 0

    def __call__(
        self, logits_NV: Tensor, output: Sequence[int], draft: Sequence[int], masks: Sequence[Mask] | None = None
    ) -> Tensor:
        """Return processed logits (N, V) for the rows after `output` and 0, 1, ... N - 1 of the drafted tokens.

        `masks` has the tokens that each row may hold; the logits given are left as they are.
        """
        logits_NV = logits_NV.clone()
        if self._bias_ids:
            logits_NV[:, self._bias_ids] += torch.tensor(self._bias, dtype=logits_NV.dtype, device=logits_NV.device)
        num_early = self._params.min_tokens - len(output)
        if num_early > 0 and self._ends:
            logits_NV[:num_early, self._ends] = -math.inf
        if masks is not None:
            forbid(logits_NV, masks)
        if penalises(self._params):
            self._penalise(logits_NV, output, draft[: len(logits_NV) - 1])
        return logits_NV

    def _penalise(self, logits_NV: Tensor, output: Sequence[int], draft: Sequence[int]) -> None:
        self._count(output)
        touched_V = self._in_prompt_V | (self._counts_V > 0)
        touched_V[list(draft)] = True
        ids_U = np.flatnonzero(touched_V)
        counts_NU = np.tile(self._counts_V[ids_U], (len(logits_NV), 1))
        for row, place in enumerate(np.searchsorted(ids_U, draft), start=1):
            counts_NU[row:, place] += 1
        place_U, device = torch.from_numpy(ids_U).to(logits_NV.device), logits_NV.device
        made_NU = torch.from_numpy(counts_NU).to(device=device, dtype=logits_NV.dtype)
        is_output_NU = made_NU > 0
        seen_NU = is_output_NU | torch.from_numpy(self._in_prompt_V[ids_U]).to(device)
        values_NU = logits_NV[:, place_U]
        repetition = self._params.repetition_penalty
        repeated_NU = torch.where(values_NU > 0, values_NU / repetition, values_NU * repetition)
        values_NU = torch.where(seen_NU, repeated_NU, values_NU)
        values_NU -= self._params.frequency_penalty * made_NU
        values_NU -= self._params.presence_penalty * is_output_NU.to(made_NU.dtype)
        logits_NV[:, place_U] = values_NU

    def _count(self, output: Sequence[int]) -> None:
        new_T = np.array(output[self._num_counted :], dtype=np.int64)
        np.add.at(self._counts_V, new_T, 1)
        self._num_counted = len(output)


def penalises(params: SamplingParams) -> bool:
    """Whether a request's logits depend on which tokens came before, beyond what the model makes of them."""
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def processors_for(
    params: SamplingParams, prompt: Sequence[int], eos_token_ids: Collection[int], vocabulary_size: int
) -> Processors | None:
    """Return a request's processors, or None where its logits are used as they are."""
    if not (params.logit_bias or params.min_tokens or penalises(params)):
        return None
    return Processors(params, prompt, eos_token_ids, vocabulary_size)


def forbid(logits_NV: Tensor, masks: Sequence[Mask]) -> Tensor:
    """Take every token that its row's mask does not allow out of the logits, in place, and return them."""
    allowed_NV = torch.from_numpy(np.stack(masks)).to(logits_NV.device)
    return logits_NV.masked_fill_(~allowed_NV, -math.inf)
