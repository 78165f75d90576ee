"""A language model that remembers: logits after any text, where only what is new since the last call is computed.

Shape suffixes: B branches, T tokens, S slots of the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forethought.core.errors import ConfigError, InputError
from forethought.nn import LanguageModel


def check_same_vocabulary(model: LanguageModel, draft: LanguageModel) -> None:
    """Refuse a draft model whose tokens are not the target's.

    Raises:
        ConfigError: the vocabularies have different sizes.
    """
    if draft.config.vocab_size != model.config.vocab_size:
        raise ConfigError(
            f"the draft has {draft.config.vocab_size} tokens and the target {model.config.vocab_size}; "
            "give a draft with the target's tokenizer"
        )


class CachedModel:
    """One sequence read by one model.

    What it returns is a function of the tokens alone; the cache, its roll-back included, only saves work. `capacity`
    is the longest text it will be asked for, `scratch` the number of slots for the tokens of branches.
    """

    def __init__(self, model: LanguageModel, capacity: int, *, scratch: int = 0) -> None:
        self.model = model
        self.context = min(capacity, model.config.max_positions)
        self.num_forwards = 0
        self._cache = model.new_cache(1, self.context + scratch)
        self._device = model.embedding.weight.device
        self._read: list[int] = []

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int], *, rows: int) -> Tensor:
        """Return the logits (rows, V) of the token after each of the last `rows` prefixes of the text.

        Raises:
            InputError: rows is not between 1 and the number of tokens, or the text is longer than the context.
        """
        tokens = list(tokens)
        if not 1 <= rows <= len(tokens) <= self.context:
            raise InputError(f"{rows} rows of logits of {len(tokens)} tokens, with a context of {self.context}")
        start = min(self._num_common(tokens), len(tokens) - rows)
        self.rewind(start)
        logits_1TV = self._forward(tokens[start:], logits_to_keep=rows)
        self._read = tokens
        return logits_1TV[0]

    def rewind(self, length: int) -> None:
        """Forget everything from position `length` on, branches included."""
        self._cache.truncate(length)
        del self._read[length:]

    @torch.inference_mode()
    def branch_logits(self, tokens_B: Sequence[int], stems_B: Sequence[int], depth: int) -> Tensor:
        """Feed the next token of each of B chains in one pass and return the logits (B, V) after them.

        Chain i hangs off the first stems_B[i] tokens of the text last read and sees these and itself only. The chains
        occupy slots behind the text, `depth` rows of B of them so far; a token's position is its place in its chain's
        text and has nothing to do with its slot. The next `logits` or `rewind` drops the chains.
        """
        num_branches, trunk = len(tokens_B), len(self._read)
        stems_B1 = torch.tensor(stems_B, device=self._device).unsqueeze(1)
        trunk_mask_BS = torch.arange(trunk, device=self._device) < stems_B1
        own_mask_BS = torch.eye(num_branches, dtype=torch.bool, device=self._device).repeat(1, depth + 1)
        return self._forward(
            tokens_B,
            mask=torch.cat([trunk_mask_BS, own_mask_BS], dim=1),
            positions=stems_B1.squeeze(1) + depth,
        )[0]

    def _forward(
        self,
        tokens: Sequence[int],
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        logits_to_keep: int | None = None,
    ) -> Tensor:
        self.num_forwards += 1
        tokens_1T = torch.tensor([tokens], device=self._device)
        return self.model(tokens_1T, cache=self._cache, mask=mask, positions=positions, logits_to_keep=logits_to_keep)

    def _num_common(self, tokens: list[int]) -> int:
        """The length of the longest common prefix with what was read; only the last few tokens ever differ."""
        length = min(len(tokens), len(self._read))
        while self._read[:length] != tokens[:length]:
            length -= 1
        return length
