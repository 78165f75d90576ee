"""What the tests of exactness share: a target that is a table of laws, the loop around it, and all of its chances."""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from forethought.core.rng import generator
from forethought.decode import (
    Chance,
    DecodeState,
    Proposer,
    SamplingParams,
    Verdict,
    distribution,
    point_mass,
)
from forethought.decode.batching.verifier import TargetVerifier
from forethought.decode.draft import Draft, Judged
from forethought.decode.law.constraint import Constraint
from forethought.decode.request import Request, Status, Work
from forethought.nn import LanguageModel, TransformerConfig
from forethought.nn.rows import Rows

GRID = 4
"""In how many equal parts a law's mass comes where laws are enumerated."""

Table = Callable[[tuple[int, ...]], Tensor]


class TableModel:
    """A PagedModel whose logits are a table of the very tokens that a row attends to, read from its slots."""

    exact = True

    def __init__(self, table: Table, vocabulary_size: int, *, num_pages: int = 64, page_size: int = 4) -> None:
        self.config = TransformerConfig(vocab_size=vocabulary_size, hidden_size=8, num_layers=1, num_heads=1)
        self.page_size, self.num_pages, self.num_calls = page_size, num_pages, {"logits": 0, "greedy": 0}
        self._table = table
        self._tokens = np.full(num_pages * page_size, -1)

    def logits(self, rows: Rows) -> Tensor:
        self.num_calls["logits"] += 1
        return self._logits(rows)

    def greedy(self, rows: Rows) -> np.ndarray:
        self.num_calls["greedy"] += 1
        largest, best = self._logits(rows).max(dim=-1)
        return torch.where(torch.isfinite(largest), best, -1).numpy()

    def _logits(self, rows: Rows) -> Tensor:
        assert len(set(rows.slots_N.tolist())) == len(rows.slots_N), "no slot is written twice"
        self._tokens[rows.slots_N] = rows.tokens_N
        texts = []
        for row in rows.logits_M:
            places = np.arange(rows.visible_N[row])
            pages = rows.pages_SP[rows.sequence_N[row]]
            text = self._tokens[pages[places // self.page_size] * self.page_size + places % self.page_size]
            assert rows.positions_N[row] == len(text) - 1
            assert -1 not in text, "a slot that nothing was written to"
            texts.append(tuple(text.tolist()))
        return torch.stack([self._table(text) for text in texts]) if texts else torch.empty(0, self.config.vocab_size)


def random_table(vocabulary_size: int, seed: int, *, width: float = 2.0) -> Table:
    """A language model without a pattern: normal logits for every text."""

    def table(text: tuple[int, ...]) -> Tensor:
        name = "test.table." + ",".join(map(str, text))
        return torch.from_numpy(width * generator(seed, name).standard_normal(vocabulary_size)).float()

    return remembered(table)


def table_of(model: LanguageModel) -> Table:
    """The table of a real model."""

    @torch.inference_mode()
    def table(text: tuple[int, ...]) -> Tensor:
        return model(torch.tensor([text]))[0, -1]

    return remembered(table)


class TableDraft:
    """What proposers ask of a CachedModel, from a table: enumerations call it a hundred thousand times."""

    def __init__(self, table: Table, context: int) -> None:
        self.context, self.num_forwards = context, 0
        self.model = SimpleNamespace(config=SimpleNamespace(max_positions=context))
        self._table = table
        self._read: tuple[int, ...] = ()
        self._chains: list[tuple[int, ...]] = []

    def logits(self, tokens: Sequence[int], *, rows: int) -> Tensor:
        self._read = tuple(tokens)
        ends = range(len(tokens) - rows + 1, len(tokens) + 1)
        return torch.stack([self._table(self._read[:end]) for end in ends])

    def branch_logits(self, tokens_B: Sequence[int], stems_B: Sequence[int], depth: int) -> Tensor:
        stems = self._chains if depth else [self._read[:stem] for stem in stems_B]
        self._chains = [(*stem, token) for stem, token in zip(stems, tokens_B, strict=True)]
        return torch.stack([self._table(chain) for chain in self._chains])


def remembered(table: Table) -> Table:
    known: dict[tuple[int, ...], Tensor] = {}

    def look_up(text: tuple[int, ...]) -> Tensor:
        if text not in known:
            known[text] = table(text)
        return known[text]

    return look_up


def new_request(prompt: Sequence[int], params: SamplingParams, *, identity: int = 0, room: int = 32) -> Request:
    """A running request with pages in no particular order; those of several requests do not meet."""
    request = Request(identity, list(prompt), params, len(prompt) + room, status=Status.RUNNING)
    request.pages = [identity * 8 + page for page in (5, 2, 7, 0, 3, 1, 6, 4)]
    return request


def work_on(request: Request, draft: Draft) -> Work:
    """The share that computes everything open and the draft."""
    tokens = request.tokens[request.num_computed :] + draft.tokens
    return Work(request, request.num_computed, tokens, len(draft.tokens), True)


def settle(request: Request, draft: Draft, judged: Judged) -> list[int]:
    """Commit a verdict and return what it kept."""
    assert judged.error is None, judged.error
    assert judged.bonus is not None
    kept = [*draft.tokens[: judged.accepted], judged.bonus]
    request.tokens += kept
    request.num_computed = len(request.tokens) - 1
    request.round += 1
    return kept


def continue_text(
    verifier: TargetVerifier,
    propose: Proposer,
    state: DecodeState,
    *,
    k: int,
    num_new: int,
    constraint: Constraint | None = None,
) -> list[int]:
    """The shipped verifier in the smallest loop: propose, judge, commit, until there are num_new tokens more."""
    request = new_request(state.tokens, state.params, room=num_new)
    if constraint is not None:
        verifier.constrain(request.id, constraint)
    while request.remaining > 0:
        proposal = propose(state, min(k, request.remaining - 1))
        is_chosen = proposal.source in ("ngram", "none")
        draft = Draft(proposal.tokens, None if is_chosen else proposal.probabilities_KV)
        judged = verifier.run([work_on(request, draft)], {request.id: draft})[0]
        kept = settle(request, draft, judged)
        state.commit(kept, Verdict(judged.accepted, kept[-1]))
    verifier.forget(request)
    return request.tokens[-num_new:]


def on_grid(law_V: Tensor) -> Tensor:
    """A law in whole parts of the grid: the largest remainders are rounded up, so zeros occur."""
    law = law_V * GRID
    short = (GRID - law.floor().sum(-1)).round().to(torch.int64)
    order = (law - law.floor()).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (law.floor() + (order < short.unsqueeze(-1))) / GRID


def grid_law(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """What stands in for `distribution`: its law on the grid."""
    return on_grid(distribution(logits_V, params))


class Fixed:
    """A generator that gives chosen numbers."""

    def __init__(self, numbers: list[float]) -> None:
        self.numbers = numbers

    def random(self, count: int) -> np.ndarray:
        assert count == len(self.numbers), "verify draws one number a drafted token and one for the bonus"
        return np.array(self.numbers)


def possible_verdicts(target: Tensor, draft: Tensor | None, tokens: Tensor) -> list[tuple[Verdict, float]]:
    """Every verdict of the shipped `verify`, called with numbers from each interval in which it decides alike."""
    module = sys.modules["forethought.decode.law.verify"]
    num_drafted = len(tokens)
    accept = module.accept_probabilities(target[:num_drafted], draft, tokens).tolist()
    drawn = point_mass(tokens, target.shape[-1]) if draft is None else draft
    weights: defaultdict[Verdict, float] = defaultdict(float)
    for kept in range(num_drafted + 1):
        reached = float(np.prod(accept[:kept])) * (1.0 - accept[kept] if kept < num_drafted else 1.0)
        if reached == 0.0:
            continue
        numbers = [0.5 * a for a in accept[:kept]] + [0.5 * (1.0 + a) for a in accept[kept:]]
        cuts = target[kept].cumsum(-1).tolist()
        if num_drafted:
            cuts += module.residual(target[kept], drawn[min(kept, num_drafted - 1)]).cumsum(-1).tolist()
        edges = np.unique(np.clip([0.0, 1.0, *cuts], 0.0, 1.0))
        for low, high in itertools.pairwise(edges):
            if high - low > 1e-9:
                verdict = module.verify(target, draft, tokens, Fixed([*numbers, (low + high) / 2]))
                weights[verdict] += reached * (high - low)
    return list(weights.items())


class Enumeration:
    """Depth-first replay: each run follows a script of choices, and names the next one."""

    def __init__(self) -> None:
        self.script: list[int] = []
        self._known: dict[tuple[bytes, ...], list[tuple[Verdict, float]]] = {}

    def runs(self) -> Iterator[None]:
        self.script = []
        while True:
            self.place, self.weight, self.widths = 0, 1.0, []
            yield
            while self.widths and self.script[len(self.widths) - 1] + 1 >= self.widths[-1]:
                self.widths.pop()
            if not self.widths:
                return
            self.script = self.script[: len(self.widths)]
            self.script[-1] += 1

    def verify(self, target: Tensor, draft: Tensor | None, tokens: Tensor, generator: object) -> Verdict:
        """What stands in for `verify`: one of its verdicts after the other."""
        key = tuple(b"" if part is None else part.numpy().tobytes() for part in (target, draft, tokens))
        if key not in self._known:
            self._known[key] = possible_verdicts(target, draft, tokens)
        options = self._known[key]
        if self.place == len(self.script):
            self.script.append(0)
        verdict, weight = options[self.script[self.place]]
        self.widths.append(len(options))
        self.place += 1
        self.weight *= weight
        return verdict


def enumerated_law(
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[], list[int]],
    *,
    position: int,
    vocabulary_size: int,
    num_tokens: int,
    draws: bool,
) -> np.ndarray:
    """The law (V, V, ...) of the tokens that `run` gives, over all numbers that it can meet.

    `position` is that of its first token; `draws` says whether it draws drafts. The laws are on the grid, so a draft's
    number matters only by its part; every verification is replayed for every verdict that it can give.
    """
    for name in ("single.generate", "batching.verifier", "single.speculate", "single.ssd"):
        monkeypatch.setattr(sys.modules[f"forethought.decode.{name}"], "distribution", grid_law)
    enumeration = Enumeration()
    for name in ("single.generate", "batching.verifier"):
        monkeypatch.setattr(sys.modules[f"forethought.decode.{name}"], "verify", enumeration.verify)
    law = np.zeros((vocabulary_size,) * num_tokens)
    num_positions = num_tokens - 1 if draws else 0
    for numbers in itertools.product(range(GRID), repeat=num_positions):
        table = {position + offset: (number + 0.5) / GRID for offset, number in enumerate(numbers)}
        # A draft's number for a later position can never matter; 0.9 makes it notice if one does.
        monkeypatch.setattr(Chance, "draft", lambda self, position, table=table: table.get(position, 0.9))
        for _ in enumeration.runs():
            law[tuple(run())] += enumeration.weight / GRID**num_positions
    return law
