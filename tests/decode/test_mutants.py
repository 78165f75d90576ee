"""The checks of the checks: every known way to lose the target's law, planted, must turn one of the checkers red.

The list is that of spec 6.2 and what was found while building. A mutant patches the shipped code; the checker is the
one that the shipped code passes, called the same way.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.decode.tables import TableDraft, TableModel, continue_text, grid_law, on_grid
from tests.decode.test_exact_law import (
    EOS,
    FEATURES,
    NARROW,
    PLAIN,
    PROMPT,
    SIZE,
    TABLES,
    Case,
    K,
    allowed_after,
    law_of,
    plant_pattern,
    ssd,
    target_law,
)
from tests.decode.test_verify import emitted_joint, joint, random_pair
from torch import Tensor

from forethought.decode import (
    PROPOSERS,
    Chance,
    DecodeState,
    Proposal,
    SamplingParams,
    SSDOptions,
    Verdict,
    accept_probabilities,
    generate,
    residual,
    verify,
)
from forethought.decode.batching.verifier import TargetVerifier
from forethought.decode.law.processors import Processors
from forethought.lookahead import OutcomeCache
from forethought.nn import LanguageModel
from forethought.stats import g_test

Pair = tuple[LanguageModel, LanguageModel]
Plant = Callable[[pytest.MonkeyPatch], None]
Change = Callable[[DecodeState, Proposal], Proposal]
VERIFY, SPECULATE, SSD = (
    sys.modules[f"forethought.decode.{name}"] for name in ("law.verify", "single.speculate", "single.ssd")
)


def law_error(
    monkeypatch: pytest.MonkeyPatch,
    case: Case,
    features: str = "plain",
    *,
    params: SamplingParams | None = None,
    change: Change | None = None,
) -> float:
    """The checker of test_exact_law: how far the enumerated law of the shipped loop is from the target's."""
    chosen, constrained = FEATURES[features]
    chosen = params or chosen
    plant_pattern(monkeypatch, case)
    law = law_of(TABLES, monkeypatch, case, chosen, constrained=constrained, change=change)
    return float(np.abs(law - target_law(TABLES[0], chosen, constrained=constrained)).max())


# Mutants of the verification.


def accept_the_argmax_else_sample_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_argmax(target: Tensor, draft: Tensor | None, tokens: Tensor) -> Tensor:
        return (target.argmax(-1) == tokens).double()

    monkeypatch.setattr(VERIFY, "accept_probabilities", by_argmax)
    monkeypatch.setattr(VERIFY, "residual", lambda target, draft: target)


def reject_into_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VERIFY, "residual", lambda target, draft: target)


def accept_one_percent_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VERIFY, "accept_probabilities", lambda *given: 0.99 * accept_probabilities(*given))


def bonus_of_a_whole_draft_from_the_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    def mutant(target: Tensor, draft: Tensor, tokens: Tensor, generator: Any) -> Verdict:
        verdict = verify(target, draft, tokens, generator)
        if verdict.accepted < len(tokens) or not len(tokens):
            return verdict
        number = float(generator.random(len(tokens) + 1)[-1])
        return Verdict(verdict.accepted, VERIFY.draw(residual(target[-1:], draft[-1:]), [number])[0])

    monkeypatch.setattr(VERIFY, "verify", mutant)


def residual_of_the_next_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def mutant(target: Tensor, draft: Tensor, tokens: Tensor, generator: Any) -> Verdict:
        verdict = verify(target, draft, tokens, generator)
        if verdict.accepted == len(tokens):
            return verdict
        number = float(generator.random(len(tokens) + 1)[-1])
        law = residual(target[verdict.accepted], draft[min(verdict.accepted + 1, len(tokens) - 1)])
        return Verdict(verdict.accepted, VERIFY.draw(law.unsqueeze(0), [number])[0])

    monkeypatch.setattr(VERIFY, "verify", mutant)


@pytest.mark.parametrize(
    "plant",
    [
        accept_the_argmax_else_sample_the_target,
        reject_into_the_target,
        accept_one_percent_less,
        bonus_of_a_whole_draft_from_the_residual,
        residual_of_the_next_row,
    ],
)
@pytest.mark.parametrize("case", [Case("draft"), ssd("alternating")], ids=str)
def test_mutants_of_the_verification_bend_the_law(monkeypatch: pytest.MonkeyPatch, plant: Plant, case: Case) -> None:
    plant(monkeypatch)
    assert law_error(monkeypatch, case) > 1e-3


def test_an_unscaled_residual_is_no_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """`draw` scales what it is given, so this one shows where the pure functions are composed."""
    mutant = lambda target, draft: (target - draft).clamp(min=0.0)  # noqa: E731
    monkeypatch.setattr(sys.modules["tests.decode.test_verify"], "residual", mutant)
    errors = [float((emitted_joint(*pair) - joint(pair[0])).abs().max()) for pair in map(random_pair, range(60))]
    assert sum(error > 1e-3 for error in errors) > 30


# Mutants of what a draft reports.


def reported(change: Callable[[DecodeState, Proposal], Tensor]) -> Change:
    """A proposal whose tokens stay and whose laws are others."""

    def changed(state: DecodeState, proposal: Proposal) -> Proposal:
        return Proposal(proposal.tokens, change(state, proposal), proposal.source) if proposal.tokens else proposal

    return changed


def raw_laws(state: DecodeState, proposal: Proposal) -> Tensor:
    """The draft model's laws at temperature 1 and without Saguaro, where the tokens were drawn."""
    assert state.draft is not None
    rows = state.draft.logits(state.tokens + proposal.tokens, rows=len(proposal.tokens) + 1)
    return grid_law(rows[:-1], PLAIN)


def rows_off_by_one(state: DecodeState, proposal: Proposal) -> Tensor:
    return proposal.probabilities_KV.roll(1, dims=0)


@pytest.mark.parametrize(
    ("constant", "pattern", "grid"), [(0.7, "natural", 10), (0.3, "natural", 4), (0.3, "misses", 4)]
)
def test_saguaro_with_the_raw_law_reported(
    monkeypatch: pytest.MonkeyPatch, constant: float, pattern: str, grid: int
) -> None:
    case = ssd(pattern, **NARROW, saguaro=constant, grid=grid)
    assert law_error(monkeypatch, case, change=reported(raw_laws)) > 1e-3


def test_temperature_on_the_target_only(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=0.4)
    assert law_error(monkeypatch, Case("draft"), params=params) <= 1e-12
    assert law_error(monkeypatch, Case("draft"), params=params, change=reported(raw_laws)) > 1e-3


@pytest.mark.parametrize("case", [Case("draft"), ssd("hits")], ids=str)
def test_rows_off_by_one(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    assert law_error(monkeypatch, case, change=reported(rows_off_by_one)) > 1e-3


def draw_the_argmax(probabilities: Tensor, uniforms: Sequence[float]) -> list[int]:
    return probabilities.argmax(-1).tolist()


def draw_from_the_top(probabilities: Tensor, uniforms: Sequence[float]) -> list[int]:
    """All but the least likely token; over three tokens what the top 3 are over many."""
    top = probabilities.clone().scatter_(-1, probabilities.argmin(-1, keepdim=True), 0.0)
    return VERIFY.draw(on_grid(top / top.sum(-1, keepdim=True)), uniforms)


@pytest.mark.parametrize("mutant", [draw_the_argmax, draw_from_the_top])
@pytest.mark.parametrize("case", [Case("draft"), ssd("hits")], ids=str)
def test_tokens_drawn_otherwise_than_reported(monkeypatch: pytest.MonkeyPatch, mutant: Any, case: Case) -> None:
    monkeypatch.setattr(SPECULATE, "draw", mutant)
    monkeypatch.setattr(SSD, "draw", mutant)
    assert law_error(monkeypatch, case) > 1e-3


def test_prepared_rows_of_a_sibling(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SSD.OutcomeSpeculator._draft_branches

    def mixed_up(*given: object) -> list[Proposal]:
        out = made(*given)
        pairs = zip(out, [*out[1:], out[0]], strict=True)
        return [Proposal(own.tokens, sibling.probabilities_KV, own.source) for own, sibling in pairs]

    monkeypatch.setattr(SSD.OutcomeSpeculator, "_draft_branches", mixed_up)
    assert law_error(monkeypatch, ssd("hits")) > 1e-3


def test_own_unlikely_tokens_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length of a draft may not depend on the tokens that were drawn."""

    def dropped(state: DecodeState, proposal: Proposal) -> Proposal:
        laws = proposal.probabilities_KV
        chances = [float(law[token]) for law, token in zip(laws, proposal.tokens, strict=True)]
        length = next((place for place, chance in enumerate(chances) if chance <= 0.25), len(chances))
        return Proposal(proposal.tokens[:length], laws[:length], proposal.source)

    assert law_error(monkeypatch, Case("draft"), change=dropped) > 1e-3


def test_a_random_backup_must_be_verified_like_any_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    law_V = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)

    def random_tokens(state: DecodeState, k: int) -> Proposal:
        positions = range(len(state.tokens), len(state.tokens) + k)
        tokens = VERIFY.draw(law_V.repeat(k, 1), [state.chance.draft(position) for position in positions])
        return Proposal(tokens, law_V.repeat(k, 1), "draft")

    monkeypatch.setitem(PROPOSERS, "draft", random_tokens)
    assert law_error(monkeypatch, Case("draft")) <= 1e-12
    accept_the_argmax_else_sample_the_target(monkeypatch)
    assert law_error(monkeypatch, Case("draft")) > 1e-3


# Mutants of processors and constraints.


def forget_the_drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is processed as the first one is."""
    made = Processors.__call__

    def mutant(self: Processors, logits: Tensor, output: Sequence[int], draft: Sequence[int], masks: Any) -> Tensor:
        rows = [made(self, logits[row : row + 1], output, [], masks and masks[:1]) for row in range(len(logits))]
        return torch.cat(rows)

    monkeypatch.setattr(Processors, "__call__", mutant)


def count_the_drafted_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is processed as the next one is: its own drafted token counts already."""
    made = Processors.__call__

    def mutant(self: Processors, logits: Tensor, output: Sequence[int], draft: Sequence[int], masks: Any) -> Tensor:
        return made(self, torch.cat([logits[:1], logits]), output, draft, masks)[1:]

    monkeypatch.setattr(Processors, "__call__", mutant)


@pytest.mark.parametrize("plant", [forget_the_drafted, count_the_drafted_too_early])
def test_processors_must_see_the_drafted_tokens_before_a_row(monkeypatch: pytest.MonkeyPatch, plant: Plant) -> None:
    plant(monkeypatch)
    assert law_error(monkeypatch, Case("draft"), "processed") > 1e-3


def test_a_forbidden_drafted_token_must_be_rejected_and_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def dropped(state: DecodeState, proposal: Proposal) -> Proposal:
        output, length = state.tokens[len(PROMPT) :], 0
        while length < len(proposal.tokens) and allowed_after(output)[proposal.tokens[length]]:
            output = [*output, proposal.tokens[length]]
            length += 1
        return Proposal(proposal.tokens[:length], proposal.probabilities_KV[:length], proposal.source)

    assert law_error(monkeypatch, Case("draft"), "masked", change=dropped) > 1e-3


# Mutants of random numbers and of the cache of outcomes.


def shared_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shared:
        def __init__(self, chance: Chance, position: int) -> None:
            self.chance, self.position = chance, position

        def random(self, count: int) -> np.ndarray:
            return np.array([self.chance.draft(self.position + offset) for offset in range(count)])

    monkeypatch.setattr(Chance, "verification", lambda chance, position: Shared(chance, position))


def sampled_p_value(num_seeds: int = 300) -> float:
    """The G-test of the first two tokens of the real path, with its real random numbers."""
    verifier = TargetVerifier(TableModel(TABLES[0], SIZE))
    draft: Any = TableDraft(TABLES[1], len(PROMPT) + 4)
    counts = np.zeros((SIZE, SIZE))
    for seed in range(num_seeds):
        params = dataclasses.replace(PLAIN, seed=seed)
        state = DecodeState(list(PROMPT), params, Chance(seed), SIZE, draft)
        counts[tuple(continue_text(verifier, PROPOSERS["draft"], state, k=K, num_new=3)[:2])] += 1
    law = np.zeros((SIZE, SIZE))
    for first, mass in enumerate(torch.softmax(TABLES[0]((*PROMPT,)), -1).tolist()):
        law[first] = mass * torch.softmax(TABLES[0]((*PROMPT, first)), -1).numpy()
    return g_test(counts.ravel(), law.ravel()).p_value


def test_draft_and_verification_need_numbers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sampled_p_value() > 1e-3
    shared_numbers(monkeypatch)
    assert sampled_p_value() < 1e-6


def num_prepared_otherwise(pair: Pair, num_seeds: int = 6) -> int:
    """In how many runs SSD's tokens are not those of drafting after the verdict; its numbers belong to positions."""
    differing = 0
    for seed in range(num_seeds):
        params = SamplingParams(max_tokens=24, seed=seed)
        more: dict[str, Any] = {"draft": pair[1], "num_speculative_tokens": 3}
        late = generate(pair[0], PROMPT, params, method="draft", **more).result()
        early = generate(pair[0], PROMPT, params, method="ssd", ssd=SSDOptions(budget=12), **more).result()
        differing += late.token_ids != early.token_ids
        assert early.statistics.hits > 0
    return differing


def ignore_the_accepted_length(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, take = OutcomeCache.prepare, OutcomeCache.take
    key = lambda outcome: (0, outcome[1])  # noqa: E731

    def prepare_by_token(self: OutcomeCache[Any, Any], owner: Any, epoch: int, work: Any) -> int:
        return prepare(self, owner, epoch, {key(outcome): piece for outcome, piece in work.items()})

    monkeypatch.setattr(OutcomeCache, "prepare", prepare_by_token)
    monkeypatch.setattr(
        OutcomeCache, "take", lambda self, owner, epoch, outcome: take(self, owner, epoch, key(outcome))
    )


def late_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mutant: every other epoch's work never comes, as from a draft that is too slow."""
    prepare = OutcomeCache.prepare

    def sometimes(self: OutcomeCache[Any, Any], owner: Any, epoch: int, work: Any) -> int:
        return 0 if epoch % 2 else prepare(self, owner, epoch, work)

    monkeypatch.setattr(OutcomeCache, "prepare", sometimes)


def accept_work_of_an_older_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(self: OutcomeCache[Any, Any], owner: Any, epoch: int, outcome: Any) -> Any:
        found = self._live.get(owner, (epoch, {}))[1].get(outcome)
        self._count("misses" if found is None else "hits", outcome)
        return found

    monkeypatch.setattr(OutcomeCache, "take", stale)


def test_a_hit_needs_the_accepted_length(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_prepared_otherwise(pair) == 0
    ignore_the_accepted_length(monkeypatch)
    assert num_prepared_otherwise(pair) > 0


def test_a_hit_needs_the_epoch(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    late_work(monkeypatch)
    assert num_prepared_otherwise(pair) == 0
    accept_work_of_an_older_epoch(monkeypatch)
    assert num_prepared_otherwise(pair) > 0


def test_the_control_of_all_mutants_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    same: Change = lambda state, proposal: proposal  # noqa: E731
    for case, features in ((Case("draft"), "plain"), (Case("draft"), "processed"), (ssd("alternating"), "masked")):
        with monkeypatch.context() as patch:
            assert law_error(patch, case, features, change=same) <= 1e-12
    assert EOS < SIZE
