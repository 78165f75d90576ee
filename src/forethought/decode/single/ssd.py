"""Speculative speculative decoding, in one process: the draft answers verdicts that it has foreseen.

While the target verifies a draft, the draft model guesses the verdicts, pairs (number accepted, bonus token), and
drafts on from each of them; when the verdict comes, its continuation is at hand (arXiv 2603.03251, algorithm 1). Here
the two take turns, so nothing is won in time; what is computed is what every faster transport must reproduce.

The output law is the target's: a prepared draft was drawn from the draft's law after exactly the text that the verdict
commits, with random numbers that no verdict has used, and which one is taken depends on judged tokens only.

Shape suffixes: B branches, N rows of the glue pass (the drafted tokens and one), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.decode.drafter.foresight import FanOut, Foresight
from forethought.decode.law.sampling import SamplingParams, distribution
from forethought.decode.law.verify import Verdict, draw
from forethought.decode.single.cached import CachedModel
from forethought.decode.single.speculate import PROPOSERS, DecodeState, Proposal, draft_with_model
from forethought.lookahead import CacheStatistics, OutcomeCache

Outcome = tuple[int, int]


@config
class SSDOptions:
    """How SSD prepares: `budget` foreseen verdicts a round, spread over accepted lengths by `fan_out`.

    `fallback` answers a verdict that was not foreseen. `saguaro` is the constant C of Saguaro sampling: below 1 it
    makes the draft avoid the tokens that it will guess, for more foreseen verdicts and fewer accepted tokens.

    Raises:
        ConfigError: a field is unknown or out of range.
    """

    budget: Annotated[int, Field(ge=1, le=256)] = 16
    fan_out: FanOut = "empirical"
    fallback: Literal["draft", "ngram", "none"] = "draft"
    saguaro: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0


class OutcomeSpeculator:
    """The draft side of SSD for one request; calling it is proposing.

    A call answers the last verdict, from prepared work or by the fallback, and then prepares for the verdict on that
    answer. A parallel transport calls `answer` and `prepare` apart, with the verification running beside the latter.
    """

    def __init__(self, options: SSDOptions, num_speculative_tokens: int, *, sequence: int = 0) -> None:
        self.options = options
        self.num_prepared = 0
        self._k = num_speculative_tokens
        self._sequence = sequence
        self._foresight = Foresight(options.fan_out, options.budget, num_speculative_tokens)
        self._cache: OutcomeCache[Outcome, Proposal] = OutcomeCache(options.budget, group_of=_accepted_length)
        self._asked: tuple[Proposal, Tensor] | None = None

    @property
    def foreseen(self) -> CacheStatistics:
        """The counts of verdicts that were foreseen and not, in all and by accepted length."""
        return self._cache.statistics

    @property
    def num_slots(self) -> int:
        """How many tokens of branches the draft model's cache must hold."""
        return self._k * self.options.budget

    def __call__(self, state: DecodeState, k: int) -> Proposal:
        """Propose at most k tokens in answer to the state's last verdict, and prepare for the next verdict."""
        proposal = self.answer(state, k)
        if k > 0:
            self.prepare(state, proposal)
        return proposal

    def answer(self, state: DecodeState, k: int) -> Proposal:
        """Return what was prepared for the last verdict, or what the fallback proposes."""
        if state.verdict is not None:
            self._observe(state.verdict)
            outcome = (state.verdict.accepted, state.verdict.bonus)
            prepared = self._cache.take(self._sequence, state.epoch, outcome)
            if prepared is not None:
                return Proposal(prepared.tokens[:k], prepared.probabilities_KV[:k], prepared.source)
        if self.options.fallback == "draft":
            return draft_with_model(state, k, lambda logits_BV, depth: self._law(logits_BV, depth, state.params))
        return PROPOSERS[self.options.fallback](state, k)

    def prepare(self, state: DecodeState, proposal: Proposal) -> None:
        """Guess verdicts on a proposal and draft on from each: one glue pass, then one pass a depth for all."""
        draft = _required(state.draft)
        text = state.tokens + proposal.tokens
        self._asked = None
        if len(text) > draft.context:
            return
        guesses_NV = _guesses(draft.logits(text, rows=len(proposal.tokens) + 1), proposal.tokens)
        self._asked = (proposal, guesses_NV)
        outcomes = _likeliest(guesses_NV, self._foresight.fan_out(proposal.source, len(proposal.tokens)))
        depth = min(self._k, draft.model.config.max_positions - len(text))
        if depth > 0:
            branches = self._draft_branches(state, outcomes, depth)
            self._cache.prepare(self._sequence, state.epoch + 1, dict(zip(outcomes, branches, strict=True)))

    def _draft_branches(self, state: DecodeState, outcomes: Sequence[Outcome], depth: int) -> list[Proposal]:
        draft = _required(state.draft)
        stems_B = [len(state.tokens) + accepted for accepted, _ in outcomes]
        tokens_B = [token for _, token in outcomes]
        steps: list[list[int]] = []
        laws: list[Tensor] = []
        for step in range(depth):
            law_BV = self._law(draft.branch_logits(tokens_B, stems_B, step), step, state.params)
            # The guessed token stands at position `stem`, the first drafted after it at the next one.
            tokens_B = draw(law_BV, [state.chance.draft(stem + 1 + step) for stem in stems_B])
            steps.append(tokens_B)
            laws.append(law_BV)
        self.num_prepared += depth * len(outcomes)
        laws_BKV = torch.stack(laws, dim=1)
        chains = zip(*steps, strict=True)
        return [Proposal(list(chain), laws_BKV[branch], "cache") for branch, chain in enumerate(chains)]

    def _law(self, logits_BV: Tensor, depth: int, params: SamplingParams) -> Tensor:
        law_BV = distribution(logits_BV, params)
        if self.options.saguaro == 1.0 or params.temperature == 0.0:
            return law_BV
        return saguaro(law_BV, self._foresight.fan_out("cache", self._k)[depth], self.options.saguaro)

    def _observe(self, verdict: Verdict) -> None:
        if self._asked is None:
            return
        proposal, guesses_NV = self._asked
        row_V = guesses_NV[verdict.accepted]
        rank = int((row_V > row_V[verdict.bonus]).sum())
        self._foresight.observe(proposal.source, verdict.accepted, len(proposal.tokens), rank)


def saguaro(law_BV: Tensor, fan_out: int, constant: float) -> Tensor:
    """Return laws in which the fan_out + 1 likeliest tokens, the coming guesses, weigh `constant` times as much.

    One more than the fan-out, because the token that is drawn will not be guessed (arXiv 2603.03251, definition 14).
    The result is the law to draw from and, for exactness, the law to verify with.
    """
    width = min(fan_out + 1, law_BV.shape[-1])
    weights_BV = torch.ones_like(law_BV).scatter_(-1, law_BV.topk(width, dim=-1).indices, constant)
    reweighted_BV = law_BV * weights_BV
    return reweighted_BV / reweighted_BV.sum(dim=-1, keepdim=True)


def _guesses(logits_NV: Tensor, drafted: Sequence[int]) -> Tensor:
    """The draft's scores of the bonus token after 0, 1, ... accepted tokens; a rejected token cannot be the bonus."""
    guesses_NV = logits_NV.clone()
    for accepted, token in enumerate(drafted):
        guesses_NV[accepted, token] = float("-inf")
    return guesses_NV


def _likeliest(guesses_NV: Tensor, fan_out: Sequence[int]) -> list[Outcome]:
    """The verdicts (accepted, bonus) to prepare for: in row k the fan_out[k] likeliest tokens."""
    possible = torch.isfinite(guesses_NV).sum(dim=-1).tolist()
    return [
        (accepted, token)
        for accepted, width in enumerate(fan_out)
        for token in guesses_NV[accepted].topk(min(width, possible[accepted])).indices.tolist()
    ]


def _accepted_length(outcome: Outcome) -> int:
    return outcome[0]


def _required(draft: CachedModel | None) -> CachedModel:
    if draft is None:
        raise ConfigError("the method ssd needs a draft model; give draft=")
    return draft
