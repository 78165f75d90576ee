"""A target's side of a few lines, for tests of the draft's side: one dense cache a request, the one verification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from forethought.decode import (
    CachedModel,
    Chance,
    DecodeState,
    OutcomeSpeculator,
    Proposal,
    Proposer,
    SamplingParams,
    SSDOptions,
    distribution,
    draw,
    point_mass,
    verify,
)
from forethought.decode.batching.pages import PageManager
from forethought.decode.draft import NO_DRAFT, Draft, DraftSource, Judged
from forethought.decode.drafter.speculator import Speculator, SpeculatorOptions
from forethought.decode.emission import Emission
from forethought.decode.request import Request, Status
from forethought.decode.single.generate import GenerationStream
from forethought.decode.single.speculate import PROPOSERS
from forethought.decode.sources.remote import RemoteOptions, RemoteSource
from forethought.decode.transports.in_process import InProcessTransport
from forethought.decode.wire.protocol import Demand, Hello
from forethought.nn import LanguageModel
from forethought.nn.paged import TorchPagedModel
from forethought.nn.rows import PagedModel, Rows

Pair = tuple[LanguageModel, LanguageModel]


class CheckedModel:
    """A paged model that knows which text every slot stands for, and refuses a row that reads or is at the wrong one.

    A slot stands for the text up to and including its token. What a row sees, in order, must be the prefixes of one
    text, its own slot the last, and its position the place in that text. So a stale, foreign or overwritten slot, a
    sibling's ancestor and a position taken from a slot all show, whatever the logits are.
    """

    exact = False

    def __init__(self, inner: PagedModel) -> None:
        self.config, self.page_size, self.num_pages = inner.config, inner.page_size, inner.num_pages
        self.texts: dict[int, tuple[int, ...]] = {}
        self.num_passes = self.num_rows = 0
        self._inner = inner

    def logits(self, rows: Rows) -> torch.Tensor:
        self._check(rows)
        return self._inner.logits(rows)

    def greedy(self, rows: Rows) -> np.ndarray:
        self._check(rows)
        return self._inner.greedy(rows)

    def text_of(self, pages: Sequence[int], length: int) -> list[int]:
        """The text that the leading slots of these pages stand for."""
        slots = [page * self.page_size + place for page in pages for place in range(self.page_size)][:length]
        for at, slot in enumerate(slots):
            require(len(self.texts[slot]) == at + 1, "a slot stands for a text of another length")
            require(at == 0 or self.texts[slot][:-1] == self.texts[slots[at - 1]], "a slot stands for another text")
        return list(self.texts[slots[-1]]) if slots else []

    def _check(self, rows: Rows) -> None:
        self.num_passes += 1
        self.num_rows += len(rows.tokens_N)
        written = rows.slots_N.tolist()
        require(len(set(written)) == len(written), "a slot is written twice in one pass")
        for row in np.argsort(rows.positions_N, kind="stable"):
            pages = rows.pages_SP[rows.sequence_N[row]]
            visible = int(rows.visible_N[row])
            seen = (pages[:, None] * self.page_size + np.arange(self.page_size)).reshape(-1)[:visible].tolist()
            if rows.extra_NE is not None:
                seen += [slot for slot in rows.extra_NE[row].tolist() if slot >= 0]
            require(seen[-1] == written[row], "a row does not see itself last")
            before: tuple[int, ...] = ()
            for slot in seen[:-1]:
                text = self.texts[slot]
                require(text[:-1] == before, "a row sees what is not one text")
                before = text
            require(int(rows.positions_N[row]) == len(before), "a row's position is not its place in the text")
            self.texts[written[row]] = (*before, int(rows.tokens_N[row]))


def require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


@dataclass
class Sample:
    """One request on the target's side."""

    request: Request
    target: CachedModel
    chance: Chance
    drafts: list[Draft] = field(default_factory=list)
    verdicts: list[Judged] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.request.tokens[len(self.request.prompt) :]

    def step(self, draft: Draft) -> None:
        """Judge a draft as the engine's verifier does, and commit what it says."""
        request = self.request
        draft = draft.cut(max(0, request.remaining - 1))
        logits = self.target.logits(request.tokens + draft.tokens, rows=len(draft.tokens) + 1)
        laws = draft.laws_KV
        if laws is None:
            laws = point_mass(draft.tokens, logits.shape[-1])
        verdict = verify(
            distribution(logits, request.params),
            laws,
            torch.tensor(draft.tokens, dtype=torch.int64),
            self.chance.verification(len(request.tokens)),
        )
        kept = [*draft.tokens[: verdict.accepted], verdict.bonus]
        request.tokens.extend(kept)
        request.round += 1
        self.drafts.append(draft)
        self.verdicts.append(Judged(verdict.accepted, verdict.bonus))


class Bench:
    """Requests that are decoded together, round by round."""

    def __init__(self, target: LanguageModel, source: DraftSource, draft: LanguageModel | None = None) -> None:
        self.target, self.source, self.draft = target, source, draft
        self.samples: list[Sample] = []

    def add(self, prompt: Sequence[int], params: SamplingParams) -> Sample:
        context = self.target.config.max_positions
        length = context if params.max_tokens is None else min(context, len(prompt) + params.max_tokens)
        request = Request(len(self.samples), list(prompt), params, length, status=Status.RUNNING)
        request.num_computed = len(prompt) - 1
        sample = Sample(request, CachedModel(self.target, length), Chance(params.seed))
        self.samples.append(sample)
        self.source.start(request)
        # Time passes while the target reads the prompt: here the draft's side gets its turn.
        self.source.collect([])
        self._judge(sample, NO_DRAFT)
        return sample

    def round(self) -> bool:
        """Run one round of all requests that are not done; return False where none is left."""
        running = [sample for sample in self.samples if sample.request.remaining > 0]
        drafts = self.source.collect([sample.request for sample in running if sample.request.remaining > 1])
        for sample in running:
            self._judge(sample, drafts.get(sample.request.id, NO_DRAFT))
        return bool(running)

    def run(self) -> list[list[int]]:
        while self.round():
            pass
        return [sample.tokens for sample in self.samples]

    def _judge(self, sample: Sample, draft: Draft) -> None:
        before = len(sample.request.tokens)
        if self.draft is not None:
            check_draft(self.draft, sample.request, draft)
        sample.step(draft)
        if sample.request.remaining > 0:
            self.source.judged(sample.request, sample.drafts[-1], sample.verdicts[-1], sample.request.tokens[before:])
        else:
            self.source.stop(sample.request)


def check_draft(model: LanguageModel, request: Request, draft: Draft) -> None:
    """Hold a draft of the model to what it says of itself: these tokens, from the model's laws after this very text."""
    if draft.source not in ("cache", "draft") or not draft.tokens:
        return
    with torch.inference_mode():
        logits = model(torch.tensor([request.tokens + draft.tokens]))[0, len(request.tokens) - 1 : -1]
    law = distribution(logits, request.params)
    require((draft.laws_KV is None) == (request.params.temperature == 0.0), "a sampled draft, and only it, has laws")
    if draft.laws_KV is None:
        require(law.argmax(dim=-1).tolist() == draft.tokens, "a greedy draft is not the likeliest text")
        return
    require(float((law - draft.laws_KV).abs().max()) < 1e-5, "the law that is reported is not that of this text")
    numbers = [Chance(request.params.seed).draft(len(request.tokens) + at) for at in range(len(draft.tokens))]
    require(draw(draft.laws_KV, numbers) == draft.tokens, "a token is not what its law and number give")


def paged(model: LanguageModel, num_pages: int = 128, page_size: int = 4) -> PagedModel:
    return TorchPagedModel(model, num_pages, page_size)


def make_source(
    draft: LanguageModel | PagedModel,
    demand: Demand,
    options: SpeculatorOptions | None = None,
    remote: RemoteOptions | None = None,
    **more: object,
) -> tuple[RemoteSource, Speculator]:
    """A source whose draft lives in this process."""
    model = paged(draft) if isinstance(draft, LanguageModel) else draft
    speculator = Speculator(model, PageManager(model.num_pages, model.page_size), options)
    transport = InProcessTransport(speculator, **more)  # pyright: ignore
    return RemoteSource(transport, Hello(model.config.vocab_size), demand, remote), speculator


def oracle(
    pair: Pair, prompt: list[int], params: SamplingParams, k: int, ssd: SSDOptions | None = None, method: str = "draft"
) -> list[int]:
    """The tokens of the single-sequence loop whose first round, as in the engine, has no draft."""
    context = pair[0].config.max_positions
    limit = min(params.max_tokens or context, context - len(prompt))
    length = len(prompt) + limit
    proposer: Proposer = OutcomeSpeculator(ssd, k) if ssd is not None else PROPOSERS[method]
    scratch = proposer.num_slots if isinstance(proposer, OutcomeSpeculator) else 0
    vocabulary_size = pair[0].config.vocab_size
    state = DecodeState(
        list(prompt), params, Chance(params.seed), vocabulary_size, CachedModel(pair[1], length, scratch=scratch)
    )

    def propose(state: DecodeState, k: int) -> Proposal:
        return PROPOSERS["none"](state, k) if state.verdict is None else proposer(state, k)

    emission = Emission(params, limit, (), None)
    return GenerationStream(CachedModel(pair[0], length), state, propose, emission, k).result().token_ids
