"""R1 end to end: the whole shipped decoding loop, enumerated over all of its random numbers, has the target's law.

The laws are rounded to a grid, so that a draft's number matters only by the part that it falls in; every verification
is replayed for every verdict that it can give, weighted by the numbers that give it. What is enumerated is the shipped
verifier with its processors and constraints behind every shipped proposer, and the real generate().
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tests.decode import tables
from tests.decode.tables import (
    GRID,
    Table,
    TableDraft,
    TableModel,
    continue_text,
    enumerated_law,
    grid_law,
    on_grid,
    random_table,
    table_of,
)
from torch import Tensor

from forethought.decode import (
    PROPOSERS,
    Chance,
    DecodeState,
    OutcomeSpeculator,
    Proposal,
    SamplingParams,
    SSDOptions,
    distribution,
    generate,
)
from forethought.decode.batching.verifier import TargetVerifier
from forethought.lookahead import OutcomeCache
from forethought.nn import LanguageModel

Pair = tuple[LanguageModel, LanguageModel]
Tables = tuple[Table, Table]
PROMPT, LENGTH, SIZE, K = [0, 2, 1, 0, 2], 3, 3, 2
EOS = 2

PLAIN = SamplingParams()
PROCESSED = SamplingParams(
    repetition_penalty=1.6, presence_penalty=0.5, frequency_penalty=0.4, logit_bias={1: 0.9}, min_tokens=2
)


@dataclass
class OneForbidden:
    """A constraint that forbids one token at every place, which one depends on the whole text so far."""

    text: list[int] = field(default_factory=list)
    is_complete: bool = True

    def masks(self, draft: Sequence[int]) -> list[np.ndarray]:
        masks = [allowed_after(self.text)]
        for end, token in enumerate(draft, start=1):
            if not masks[-1][token]:
                break
            masks.append(allowed_after([*self.text, *draft[:end]]))
        return masks

    def commit(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            assert allowed_after(self.text)[token]
            self.text.append(token)


def allowed_after(output: Sequence[int]) -> np.ndarray:
    return np.arange(SIZE) != (2 * sum(output) + len(output)) % SIZE


def reference_logits(raw: Tensor, output: Sequence[int], params: SamplingParams, constrained: bool) -> Tensor:
    """What the processors should make of one row, token by token."""
    values = []
    for token, logit in enumerate(raw.tolist()):
        value = logit + (params.logit_bias or {}).get(token, 0.0)
        if token == EOS and len(output) < params.min_tokens:
            value = -math.inf
        if constrained and not allowed_after(output)[token]:
            value = -math.inf
        if token in PROMPT or token in output:
            value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        count = list(output).count(token)
        values.append(value - params.frequency_penalty * count - params.presence_penalty * (count > 0))
    return torch.tensor(values, dtype=raw.dtype)


def target_law(target: Table, params: SamplingParams = PLAIN, *, constrained: bool = False) -> np.ndarray:
    """The law of the next three tokens, straight from the model."""

    @cache
    def law_after(output: tuple[int, ...]) -> list[float]:
        return grid_law(reference_logits(target((*PROMPT, *output)), output, params, constrained), params).tolist()

    law = np.zeros((SIZE,) * LENGTH)
    for tokens in itertools.product(range(SIZE), repeat=LENGTH):
        law[tokens] = math.prod(law_after(tokens[:place])[token] for place, token in enumerate(tokens))
    return law


@dataclass(frozen=True)
class Case:
    """A method with its options; `pattern` says which rounds may hit, "natural" is as it comes.

    `grid` is how fine the laws are: in quarters a Saguaro constant of 0.7 is rounded away.
    """

    method: str
    options: SSDOptions | None = None
    pattern: str = "natural"
    grid: int = 4

    def __str__(self) -> str:
        if self.options is None:
            return self.method
        return f"ssd-{self.pattern}-b{self.options.budget}-{self.options.fallback}-C{self.options.saguaro}"


def ssd(pattern: str, *, budget: int = 9, grid: int = 4, **options: Any) -> Case:
    return Case("ssd", SSDOptions(budget=budget, **options), pattern, grid)


# With three tokens Saguaro has something to avoid only where fewer guesses are made than verdicts are possible.
NARROW: dict[str, Any] = {"budget": 3, "fan_out": "uniform"}
CASES = [
    *(Case(method) for method in ("none", "draft", "ngram")),
    ssd("hits"),
    *(ssd("misses", fallback=fallback) for fallback in ("draft", "ngram", "none")),
    ssd("alternating"),
    ssd("alternating", fallback="ngram"),
    ssd("natural", **NARROW, fallback="none"),
    ssd("natural", budget=1, fallback="ngram"),
    ssd("natural", **NARROW, saguaro=0.7, grid=10),
    ssd("natural", **NARROW, saguaro=0.3),
    ssd("alternating", **NARROW, saguaro=0.3, fallback="none"),
    ssd("misses", **NARROW, saguaro=0.3),
]
FEATURES = {
    "plain": (PLAIN, False),
    "processed": (PROCESSED, False),
    "masked": (PLAIN, True),
    "both": (dataclasses.replace(PROCESSED, min_tokens=1), True),
}


def plant_pattern(monkeypatch: pytest.MonkeyPatch, case: Case) -> list[int]:
    """Turn hits into misses in the rounds that the case names, for the fallback to answer; return [misses, hits]."""
    monkeypatch.setattr(tables, "GRID", case.grid)
    take, num_takes = OutcomeCache.take, [0, 0]

    def sometimes(self: OutcomeCache[Any, Any], owner: Any, epoch: int, outcome: Any) -> Any:
        found = take(self, owner, epoch, outcome)
        num_takes[found is not None] += 1
        return None if case.pattern == "misses" or (case.pattern == "alternating" and epoch % 2) else found

    monkeypatch.setattr(OutcomeCache, "take", sometimes)
    return num_takes


def plant_saguaro_on_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saguaro's laws on the grid too: still what is drawn from and what is reported, and enumerable."""
    module = sys.modules["forethought.decode.single.ssd"]
    made = module.saguaro
    monkeypatch.setattr(module, "saguaro", lambda *given: on_grid(made(*given)))


def law_of(
    pair: Tables,
    monkeypatch: pytest.MonkeyPatch,
    case: Case,
    params: SamplingParams = PLAIN,
    *,
    constrained: bool = False,
    change: Callable[[DecodeState, Proposal], Proposal] | None = None,
) -> np.ndarray:
    """The enumerated law of the verifier behind a proposer, whose proposals may be changed on the way."""
    plant_saguaro_on_grid(monkeypatch)
    verifier = TargetVerifier(TableModel(pair[0], SIZE), eos_token_ids=[EOS])

    def run() -> list[int]:
        state = DecodeState(list(PROMPT), params, Chance(0), SIZE)
        made = OutcomeSpeculator(case.options, K) if case.options else PROPOSERS[case.method]
        if case.method in ("draft", "ssd"):
            state.draft = TableDraft(pair[1], len(PROMPT) + LENGTH)  # pyright: ignore
        return continue_text(
            verifier,
            (lambda state, k: change(state, made(state, k))) if change else made,
            state,
            k=K,
            num_new=LENGTH,
            constraint=OneForbidden() if constrained else None,
        )

    return enumerated_law(
        monkeypatch,
        run,
        position=len(PROMPT),
        vocabulary_size=SIZE,
        num_tokens=LENGTH,
        draws=case.method in ("draft", "ssd") and (case.options is None or case.pattern != "misses" or fallback(case)),
    )


def fallback(case: Case) -> bool:
    return case.options is not None and case.options.fallback == "draft"


# Laws of three tokens with zeros among them, drafts that differ from the target's and are accepted half the time.
TABLES: Tables = (random_table(SIZE, 3, width=1.0), random_table(SIZE, 11, width=1.0))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_enumerated_law_is_the_targets(monkeypatch: pytest.MonkeyPatch, case: Case, features: str) -> None:
    params, constrained = FEATURES[features]
    num_takes = plant_pattern(monkeypatch, case)
    expected = target_law(TABLES[0], params, constrained=constrained)
    law = law_of(TABLES, monkeypatch, case, params, constrained=constrained)
    assert case.pattern != "hits" or num_takes[0] == 0 < num_takes[1]
    assert abs(law.sum() - 1.0) <= 1e-12
    assert float(np.abs(law - expected).max()) <= 1e-12


@pytest.mark.parametrize("case", [Case("none"), Case("draft"), Case("ngram"), ssd("natural")], ids=str)
def test_generate_enumerated_has_the_same_law(
    new_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    """The same with real models and their caches."""
    target, draft = new_pair(SIZE, 5, noise=0.7)
    for model in (target, draft):
        with torch.no_grad():
            model.unembedding.weight.mul_(0.35)  # pyright: ignore

    def run() -> list[int]:
        stream = generate(
            target, PROMPT, SamplingParams(max_tokens=LENGTH), method=case.method, draft=draft,  # pyright: ignore
            num_speculative_tokens=K, ssd=case.options,
        )  # fmt: skip
        return stream.result().token_ids

    law = enumerated_law(
        monkeypatch, run, position=len(PROMPT), vocabulary_size=SIZE, num_tokens=LENGTH,
        draws=case.method in ("draft", "ssd"),
    )  # fmt: skip
    assert float(np.abs(law - target_law(table_of(target))).max()) <= 1e-12


def test_the_cases_are_not_trivial() -> None:
    """Processing and masks change the law, and the laws on the grid are neither all mass nor all alike."""
    laws = [target_law(TABLES[0], params, constrained=masked) for params, masked in FEATURES.values()]
    for one, other in itertools.combinations(laws, 2):
        assert float(np.abs(one - other).max()) > 0.01
    assert all(2 <= (law > 0).sum() < law.size for law in laws)
    raw = torch.randn(50, SIZE, generator=torch.Generator().manual_seed(0))
    rounded = grid_law(raw, PLAIN)
    assert torch.equal(rounded * GRID, (rounded * GRID).round())
    assert float((rounded.sum(-1) - 1).abs().max()) == 0.0
    assert float((rounded - distribution(raw, PLAIN)).abs().max()) <= 1 / GRID
