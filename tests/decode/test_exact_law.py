"""R1 end to end: the whole shipped decoding loop, enumerated over all of its random numbers, has the target's law.

The laws are rounded to quarters, so that a draft's number matters only by its quarter; every verification is replayed
for every verdict that it can give, weighted by the numbers that give it. What is enumerated is the real generate().
"""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from forethought.decode import (
    Chance,
    Proposal,
    SamplingParams,
    SSDOptions,
    Verdict,
    accept_probabilities,
    distribution,
    generate,
    residual,
    verify,
)
from forethought.nn import LanguageModel

Pair = tuple[LanguageModel, LanguageModel]
PROMPT, GRID, LENGTH, SIZE = [0, 2, 1, 0, 2], 4, 3, 3


def quarters(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """The law of the logits in whole quarters: the largest remainders are rounded up, so zeros occur."""
    law = distribution(logits_V, params) * GRID
    short = (GRID - law.floor().sum(-1)).to(torch.int64)
    order = (law - law.floor()).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (law.floor() + (order < short.unsqueeze(-1))) / GRID


class Fixed:
    """A generator that gives chosen numbers."""

    def __init__(self, numbers: list[float]) -> None:
        self.numbers = numbers

    def random(self, count: int) -> np.ndarray:
        assert count == len(self.numbers)
        return np.array(self.numbers)


def possible_verdicts(target: Tensor, draft: Tensor, tokens: Tensor) -> list[tuple[Verdict, float]]:
    """Every verdict of the shipped `verify`, called with numbers from each interval in which it decides alike."""
    num_drafted = len(tokens)
    accept = accept_probabilities(target[:num_drafted], draft, tokens).tolist()
    weights: defaultdict[Verdict, float] = defaultdict(float)
    for kept in range(num_drafted + 1):
        reached = float(np.prod(accept[:kept])) * (1.0 - accept[kept] if kept < num_drafted else 1.0)
        if reached == 0.0:
            continue
        numbers = [0.5 * a for a in accept[:kept]] + [0.5 * (1.0 + a) for a in accept[kept:]]
        law = target[kept] if kept == num_drafted else residual(target[kept], draft[kept])
        edges = np.unique(np.clip([0.0, *law.cumsum(-1).tolist(), *np.linspace(0, 1, 13)], 0.0, 1.0))
        for low, high in itertools.pairwise(edges):
            if high - low > 1e-9:
                verdict = verify(target, draft, tokens, Fixed([*numbers, (low + high) / 2]))  # pyright: ignore
                weights[verdict] += reached * (high - low)
    return list(weights.items())


class Enumeration:
    """Depth-first replay: each run follows a script of choices, and names the next one."""

    def __init__(self) -> None:
        self.script: list[int] = []

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

    def verify(self, target: Tensor, draft: Tensor, tokens: Tensor, generator: object) -> Verdict:
        options = possible_verdicts(target, draft, tokens)
        if self.place == len(self.script):
            self.script.append(0)
        verdict, weight = options[self.script[self.place]]
        self.widths.append(len(options))
        self.place += 1
        self.weight *= weight
        return verdict


def enumerated_law(pair: Pair, monkeypatch: pytest.MonkeyPatch, method: str, options: SSDOptions | None) -> np.ndarray:
    """The law (V, V, V) of three generated tokens, k = 2."""
    for module in ("generate", "speculate", "ssd"):
        monkeypatch.setattr(sys.modules[f"forethought.decode.{module}"], "distribution", quarters)
    law = np.zeros((SIZE,) * LENGTH)
    enumeration = Enumeration()
    monkeypatch.setattr(sys.modules["forethought.decode.generate"], "verify", enumeration.verify)
    positions = (LENGTH - 1) if method in ("draft", "ssd") else 0
    for numbers in itertools.product(range(GRID), repeat=positions):
        table = {len(PROMPT) + offset: (number + 0.5) / GRID for offset, number in enumerate(numbers)}
        # A draft's number for a later position can never matter; 0.9 makes it notice if one does.
        monkeypatch.setattr(Chance, "draft", lambda self, position, table=table: table.get(position, 0.9))
        for _ in enumeration.runs():
            stream = generate(
                pair[0], PROMPT, SamplingParams(max_tokens=LENGTH), method=method, draft=pair[1],  # pyright: ignore
                num_speculative_tokens=2, ssd=options,
            )  # fmt: skip
            law[tuple(stream.result().token_ids)] += enumeration.weight / GRID**positions
    return law


def target_law(target: LanguageModel) -> np.ndarray:
    law = np.zeros((SIZE,) * LENGTH)
    for tokens in itertools.product(range(SIZE), repeat=LENGTH):
        with torch.inference_mode():
            rows = quarters(target(torch.tensor([[*PROMPT, *tokens]]))[0], SamplingParams())
        law[tokens] = np.prod([float(rows[len(PROMPT) - 1 + i, token]) for i, token in enumerate(tokens)])
    return law


CASES: list[Any] = [
    ("none", None),
    ("draft", None),
    ("ngram", None),
    ("ssd", SSDOptions(budget=9)),
    pytest.param("ssd", SSDOptions(budget=1, fallback="ngram"), marks=pytest.mark.nightly),
    ("ssd", SSDOptions(budget=3, fallback="none", fan_out="uniform")),
]


@pytest.fixture(scope="module")
def soft_pair(new_pair: Callable[..., Pair]) -> Pair:
    target, draft = new_pair(SIZE, 5, noise=0.7)
    for model in (target, draft):
        with torch.no_grad():
            model.unembedding.weight.mul_(0.35)  # pyright: ignore
    return target, draft


@pytest.mark.parametrize(("method", "options"), CASES)
def test_the_enumerated_law_is_the_targets(
    soft_pair: Pair, monkeypatch: pytest.MonkeyPatch, method: str, options: SSDOptions | None
) -> None:
    expected = target_law(soft_pair[0])
    law = enumerated_law(soft_pair, monkeypatch, method, options)
    assert abs(law.sum() - 1.0) <= 1e-12
    assert float(np.abs(law - expected).max()) <= 1e-12


def plant_raw_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft reports a law other than the one it drew from."""
    module = sys.modules["forethought.decode.ssd"]
    made = module.OutcomeSpeculator.answer

    def answer(self: object, state: object, k: int) -> Proposal:
        out = made(self, state, k)
        return Proposal(out.tokens, (out.probabilities_KV + 0.25) / (1.0 + 0.25 * SIZE), out.source)

    monkeypatch.setattr(module.OutcomeSpeculator, "answer", answer)


def plant_rows_of_a_sibling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prepared draft comes with the laws of another branch."""
    module = sys.modules["forethought.decode.ssd"]
    made = module.OutcomeSpeculator._draft_branches

    def draft_branches(*given: object) -> list[Proposal]:
        out = made(*given)
        return [
            Proposal(own.tokens, sibling.probabilities_KV, own.source)
            for own, sibling in zip(out, [*out[1:], out[0]], strict=True)
        ]

    monkeypatch.setattr(module.OutcomeSpeculator, "_draft_branches", draft_branches)


def plant_target_for_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rejected token is replaced by a draw from the target itself."""
    monkeypatch.setattr(sys.modules["forethought.decode.verify"], "residual", lambda target_V, draft_V: target_V)


@pytest.mark.parametrize("plant", [plant_raw_law, plant_rows_of_a_sibling, plant_target_for_residual])
def test_planted_biases_show(
    soft_pair: Pair, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    plant(monkeypatch)
    law = enumerated_law(soft_pair, monkeypatch, "ssd", SSDOptions(budget=9))
    assert float(np.abs(law - target_law(soft_pair[0])).max()) > 1e-3
