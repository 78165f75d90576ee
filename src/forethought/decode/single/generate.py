"""The main path of decoding one request: propose, verify, let out; the same loop for every method.

A round feeds the target the last committed token and the draft in one forward pass and keeps what `verify` says. Plain
decoding is the round with an empty draft.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from forethought.core.errors import ConfigError, InputError, unknown_name
from forethought.decode.detokenize import Decode
from forethought.decode.emission import Chunk, Emission
from forethought.decode.law.chance import Chance
from forethought.decode.law.sampling import SamplingParams, distribution
from forethought.decode.law.verify import verify
from forethought.decode.single.cached import CachedModel, check_same_vocabulary
from forethought.decode.single.speculate import PROPOSERS, DecodeState, Proposer
from forethought.decode.single.ssd import OutcomeSpeculator, SSDOptions
from forethought.decode.statistics import Statistics
from forethought.nn import LanguageModel

Method = Literal["none", "draft", "ngram", "ssd"]
METHODS: tuple[Method, ...] = ("none", "draft", "ngram", "ssd")
_ENGINE_ONLY = (
    "n",
    "min_tokens",
    "logprobs",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
)


@dataclass(frozen=True)
class Generation:
    """A finished request: its tokens and text, why it ended ("length" or "stop", and on what), and its accounts."""

    token_ids: list[int]
    text: str
    finish_reason: str
    stop_reason: str | int | None
    statistics: Statistics


class GenerationStream:
    """One request being decoded; iterate over its chunks as they come, then ask for the `result`."""

    def __init__(self, target: CachedModel, state: DecodeState, propose: Proposer, emission: Emission, k: int) -> None:
        self.statistics = Statistics()
        self._target, self._state, self._propose, self._emission, self._k = target, state, propose, emission, k

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        """Run one round and return what left.

        Raises:
            ForethoughtError: the model gave no finite logits.
        """
        if self._emission.finish_reason is not None:
            raise StopIteration
        return self._round()

    def result(self) -> Generation:
        """Decode what is left and return the whole."""
        for _ in self:
            pass
        emission = self._emission
        return Generation(
            emission.token_ids, emission.text, str(emission.finish_reason), emission.stop_reason, self.statistics
        )

    def _round(self) -> Chunk:
        state = self._state
        # The target adds a token to every draft, so one fewer than still allowed is the most that can be of use.
        proposal = self._propose(state, min(self._k, self._emission.remaining - 1))
        num_drafted = len(proposal.tokens)
        logits_KV = self._target.logits(state.tokens + proposal.tokens, rows=num_drafted + 1)
        verdict = verify(
            distribution(logits_KV, state.params),
            proposal.probabilities_KV.to(logits_KV.device),
            torch.tensor(proposal.tokens, dtype=torch.int64, device=logits_KV.device),
            state.chance.verification(len(state.tokens)),
        )
        kept = [*proposal.tokens[: verdict.accepted], verdict.bonus]
        chunk = self._emission.push(kept)
        state.commit(kept, verdict)
        self.statistics.count_round(num_drafted, verdict, len(chunk.token_ids))
        self._count_draft()
        return chunk

    def _count_draft(self) -> None:
        if self._state.draft is not None:
            self.statistics.draft_forwards = self._state.draft.num_forwards
        if isinstance(self._propose, OutcomeSpeculator):
            foreseen = self._propose.foreseen
            self.statistics.lookups, self.statistics.hits = foreseen.hits + foreseen.misses, foreseen.hits
            self.statistics.prepared = self._propose.num_prepared


def generate(
    model: LanguageModel,
    prompt_tokens: Sequence[int],
    params: SamplingParams | None = None,
    *,
    method: Method = "none",
    draft: LanguageModel | None = None,
    num_speculative_tokens: int = 5,
    eos_token_id: int | Sequence[int] | None = None,
    decode: Decode | None = None,
    ssd: SSDOptions | None = None,
) -> GenerationStream:
    """Decode one request; the law of its tokens is the model's under `params`, whatever the method.

    Methods: "none" one token a forward; "draft" a draft model proposes `num_speculative_tokens` a round; "ngram" the
    text so far does; "ssd" the draft model prepares answers to the verdicts it foresees. With temperature 0 all give
    the same tokens, unless two logits lie closer than the rounding of a forward pass, which depends on how many tokens
    it reads; with a seed each gives its own tokens again. `decode` (tokens to text) is needed for text and stop
    strings; `eos_token_id` is one id, several, or None for none; `ssd` sets how SSD prepares.

    Raises:
        ConfigError: the method is unknown, its draft model is missing or has another vocabulary, stop strings have no
            `decode`, num_speculative_tokens is not positive, or `params` asks for what only the engine (LLM) does.
        InputError: the prompt is empty, holds an unknown token, or fills the model's context.
    """
    params = params or SamplingParams()
    _check_honoured(params)
    _check_method(model, method, draft, num_speculative_tokens)
    limit = _check_prompt(model, prompt_tokens, params)
    length, vocabulary_size = len(prompt_tokens) + limit, model.config.vocab_size
    emission = Emission(params, limit, _as_ids(eos_token_id), decode)
    state = DecodeState(list(prompt_tokens), params, Chance(params.seed), vocabulary_size)
    if method == "ssd" and draft is not None:
        propose: Proposer = OutcomeSpeculator(ssd or SSDOptions(), num_speculative_tokens)
        scratch = propose.num_slots
    else:
        propose, scratch = PROPOSERS[method], 0
    if draft is not None and method in ("draft", "ssd"):
        state.draft = CachedModel(draft, length, scratch=scratch)
    return GenerationStream(CachedModel(model, length), state, propose, emission, num_speculative_tokens)


def _check_honoured(params: SamplingParams) -> None:
    default = SamplingParams()
    given = [name for name in _ENGINE_ONLY if getattr(params, name) != getattr(default, name)]
    if given:
        raise ConfigError(f"{', '.join(given)}: the engine does this and generate does not; use decode.LLM")


def _check_method(model: LanguageModel, method: Method, draft: LanguageModel | None, k: int) -> None:
    if method not in METHODS:
        raise unknown_name("method of decoding", str(method), METHODS)
    if k < 1:
        raise ConfigError(f"num_speculative_tokens is {k}; give at least 1, or the method none")
    if method not in ("draft", "ssd"):
        return
    if draft is None:
        raise ConfigError(f"the method {method} needs a draft model; give draft=, or the method ngram or none")
    check_same_vocabulary(model, draft)


def _check_prompt(model: LanguageModel, prompt_tokens: Sequence[int], params: SamplingParams) -> int:
    """Return how many tokens may be generated."""
    context, vocabulary_size = model.config.max_positions, model.config.vocab_size
    if len(prompt_tokens) == 0:
        raise InputError("the prompt has no tokens; give at least one, for example the end-of-text token")
    unknown = next((token for token in prompt_tokens if not 0 <= token < vocabulary_size), None)
    if unknown is not None:
        raise InputError(f"the prompt holds token {unknown}; the model knows 0 to {vocabulary_size - 1}")
    if len(prompt_tokens) >= context:
        raise InputError(f"the prompt has {len(prompt_tokens)} tokens; the model's context of {context} leaves no room")
    room = context - len(prompt_tokens)
    return room if params.max_tokens is None else min(params.max_tokens, room)


def _as_ids(eos_token_id: int | Sequence[int] | None) -> tuple[int, ...]:
    if eos_token_id is None:
        return ()
    return (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
