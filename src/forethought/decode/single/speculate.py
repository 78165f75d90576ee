"""Proposers of draft tokens behind one signature: `propose(state, k) -> Proposal`, at most k tokens with their laws.

A proposer returns for each token the law that it was really drawn from, a point mass where nothing was drawn. Its
length may depend on what is committed and on k, never on the tokens that it has just drawn.

Shape suffixes: K drafted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.core.errors import ConfigError
from forethought.decode.law.chance import Chance
from forethought.decode.law.sampling import SamplingParams, distribution, point_mass
from forethought.decode.law.verify import Verdict, draw
from forethought.decode.single.cached import CachedModel

LONGEST_NGRAM, SHORTEST_NGRAM = 4, 2


@dataclass(frozen=True)
class Proposal:
    """Draft tokens, the laws (K, V) in float64 that they were drawn from, and where they came from."""

    tokens: list[int]
    probabilities_KV: Tensor
    source: str


@dataclass
class DecodeState:
    """What a proposer sees of a request: its committed tokens, the last verdict on them and its random numbers.

    `epoch` counts the verdicts so far; `verdict` is None before the first. `draft` is the draft model, where the
    method has one.
    """

    tokens: list[int]
    params: SamplingParams
    chance: Chance
    vocabulary_size: int
    draft: CachedModel | None = None
    epoch: int = 0
    verdict: Verdict | None = None

    def commit(self, tokens: Sequence[int], verdict: Verdict) -> None:
        """Take the tokens that a verdict kept, and remember it."""
        self.tokens.extend(tokens)
        self.epoch += 1
        self.verdict = verdict


Proposer = Callable[[DecodeState, int], Proposal]
Law = Callable[[Tensor, int], Tensor]


def propose_nothing(state: DecodeState, k: int) -> Proposal:
    """Propose no token: the round is a plain decoding step."""
    return deterministic([], state.vocabulary_size, "none")


def propose_from_prompt(state: DecodeState, k: int) -> Proposal:
    """Propose what followed the latest earlier occurrence of the last tokens, the longest n-gram first.

    This is prompt lookup; its laws are point masses.
    """
    return deterministic(_continuation(state.tokens, k), state.vocabulary_size, "ngram")


def propose_with_model(state: DecodeState, k: int) -> Proposal:
    """Propose k tokens drawn one after the other from the draft model, under the request's own sampling parameters."""
    return draft_with_model(state, k, lambda logits_BV, _: distribution(logits_BV, state.params))


PROPOSERS: dict[str, Proposer] = {
    "draft": propose_with_model,
    "ngram": propose_from_prompt,
    "none": propose_nothing,
}


def draft_with_model(state: DecodeState, k: int, law: Law) -> Proposal:
    """Draw k tokens from the draft model, each from `law(logits_BV, depth)`; fewer where its context ends."""
    if state.draft is None:
        raise ConfigError("this proposer needs a draft model; give draft=")
    tokens, laws = list(state.tokens), []
    for depth in range(min(k, state.draft.context - len(tokens))):
        law_1V = law(state.draft.logits(tokens, rows=1), depth)
        tokens += draw(law_1V, [state.chance.draft(len(tokens))])
        laws.append(law_1V)
    drafted = tokens[len(state.tokens) :]
    if not drafted:
        return deterministic([], state.vocabulary_size, "draft")
    return Proposal(drafted, torch.cat(laws), "draft")


def deterministic(tokens: Sequence[int], vocabulary_size: int, source: str) -> Proposal:
    """Return a proposal of tokens that were chosen without chance."""
    return Proposal(list(tokens), point_mass(list(tokens), vocabulary_size), source)


def _continuation(tokens: list[int], k: int) -> list[int]:
    for length in range(LONGEST_NGRAM, SHORTEST_NGRAM - 1, -1):
        if len(tokens) <= length:
            continue
        suffix = tokens[-length:]
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start] == suffix[0] and tokens[start : start + length] == suffix:
                return tokens[start + length : start + length + k]
    return []
