"""The verifier: rows for the model, verdicts that are each request's own, failures that stay with one request (R11)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decode.tables import TableModel, continue_text, new_request, random_table, settle, work_on
from torch import Tensor

from forethought.core.errors import ForethoughtError
from forethought.core.rng import generator
from forethought.decode import (
    PROPOSERS,
    CachedModel,
    Chance,
    DecodeState,
    SamplingParams,
    Statistics,
    Verdict,
    distribution,
    draw,
    generate,
)
from forethought.decode.batching.verifier import TargetVerifier, build_rows
from forethought.decode.draft import Draft, Judged
from forethought.decode.request import Request, Work
from forethought.nn import LanguageModel
from forethought.nn.paged import TorchPagedModel

Pair = tuple[LanguageModel, LanguageModel]
SIZE = 12
TABLE, DRAFT_TABLE = random_table(SIZE, 21), random_table(SIZE, 22)
GREEDY, WARM = SamplingParams(temperature=0.0), SamplingParams(temperature=0.8, seed=3)
PARAMS = [
    GREEDY,
    WARM,
    SamplingParams(seed=1, top_k=4, top_p=0.8),
    SamplingParams(temperature=0.0, repetition_penalty=1.4, min_tokens=3),
    SamplingParams(seed=2, presence_penalty=0.5, frequency_penalty=0.3, logit_bias={1: 2.0}),
    SamplingParams(seed=4, logprobs=3),
]


class NoMultiples:
    """A constraint on the sum of the output: it may not reach a multiple of three."""

    is_complete = True

    def __init__(self) -> None:
        self.output: list[int] = []

    def masks(self, draft: Sequence[int]) -> list[np.ndarray]:
        text, masks = list(self.output), []
        for token in [*draft, -1]:
            masks.append((np.arange(SIZE) + sum(text)) % 3 != 0)
            if token < 0 or not masks[-1][token]:
                break
            text.append(token)
        return masks

    def commit(self, tokens: Sequence[int]) -> None:
        self.output += tokens


class Failing(NoMultiples):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def masks(self, draft: Sequence[int]) -> list[np.ndarray]:
        raise self.error


def draft_for(request: Request, k: int) -> Draft:
    """A draft as a draft model makes it, from the table of the draft."""
    tokens, laws = [], []
    for place in range(k):
        law = distribution(DRAFT_TABLE((*request.tokens, *tokens)).unsqueeze(0), request.params)
        tokens += draw(law, [Chance(request.params.seed).draft(len(request.tokens) + place)])
        laws.append(law)
    return Draft(tokens, torch.cat(laws) if laws else None)


def some_requests(rng: np.random.Generator, params: Sequence[SamplingParams] = PARAMS) -> list[Request]:
    return [
        new_request(rng.integers(SIZE, size=rng.integers(1, 7)).tolist(), one, identity=identity, room=12)
        for identity, one in enumerate(params)
    ]


def run_alone(request: Request, rng: np.random.Generator, *, constrained: bool, rounds: int = 4) -> list[Judged]:
    verifier = TargetVerifier(TableModel(TABLE, SIZE), eos_token_ids=[0])
    if constrained:
        verifier.constrain(request.id, NoMultiples())
    verdicts = []
    for _ in range(rounds):
        draft = draft_for(request, int(rng.integers(0, 4)))
        verdicts += verifier.run([work_on(request, draft)], {request.id: draft})
        settle(request, draft, verdicts[-1])
    return verdicts


@pytest.mark.parametrize("case", range(12))
def test_verdicts_do_not_depend_on_neighbours(case: int) -> None:
    """R5 here: alone, in mixed batches in any order, and beside chunks of prompts, the verdicts are the same."""
    constrained = {1, 3, 4} if case % 2 else set()

    def rng_of(request: Request) -> np.random.Generator:
        return generator(case, "test.neighbours", request.id)

    alone = {
        request.id: run_alone(request, rng_of(request), constrained=request.id in constrained)
        for request in some_requests(generator(case, "test.requests"))
    }
    requests = some_requests(generator(case, "test.requests"))
    verifier = TargetVerifier(TableModel(TABLE, SIZE, num_pages=128), eos_token_ids=[0])
    for identity in constrained:
        verifier.constrain(identity, NoMultiples())
    other = new_request(list(range(SIZE)), GREEDY, identity=len(PARAMS))
    rngs = {request.id: rng_of(request) for request in requests}
    for step in range(4):
        order = generator(case, "test.order", step).permutation(len(requests))
        drafts = {request.id: draft_for(request, int(rngs[request.id].integers(0, 4))) for request in requests}
        works = [work_on(requests[place], drafts[requests[place].id]) for place in order]
        works.insert(step, Work(other, 3 * step, other.tokens[3 * step : 3 * step + 3], 0, False))
        judged = verifier.run(works, drafts)
        for work, verdict in zip(works, judged, strict=True):
            if work.request is other:
                assert verdict == Judged()
                continue
            assert verdict == alone[work.request.id][step]
            settle(work.request, drafts[work.request.id], verdict)


def test_a_prompt_in_chunks_gives_the_verdict_of_the_whole() -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    for params in PARAMS:
        whole = TargetVerifier(TableModel(TABLE, SIZE), eos_token_ids=[0])
        expected = whole.run([Work(new_request(prompt, params), 0, prompt, 0, True)], {})
        verifier, request = TargetVerifier(TableModel(TABLE, SIZE), eos_token_ids=[0]), new_request(prompt, params)
        for start, end in ((0, 3), (3, 4), (4, 7)):
            assert verifier.run([Work(request, start, prompt[start:end], 0, False)], {}) == [Judged()]
        assert verifier.run([Work(request, 7, prompt[7:], 0, True)], {}) == expected


def test_plain_greedy_asks_for_tokens_only_and_agrees_with_logits() -> None:
    model = TableModel(TABLE, SIZE)
    for case in range(20):
        rng = generator(case, "test.greedy")
        requests = some_requests(rng, [GREEDY] * 3)
        drafts = {request.id: Draft(rng.integers(SIZE, size=rng.integers(0, 5)).tolist()) for request in requests}
        for request in requests:  # some drafts are right for a while
            text = tuple(request.tokens)
            for place in range(min(case % 4, len(drafts[request.id].tokens))):
                drafts[request.id].tokens[place] = int(TABLE(text).argmax())
                text = (*text, drafts[request.id].tokens[place])
        works = [work_on(request, drafts[request.id]) for request in requests]
        before = dict(model.num_calls)
        fast = TargetVerifier(model).run(works, drafts)
        assert model.num_calls == {"logits": before["logits"], "greedy": before["greedy"] + 1}
        warm = new_request([1], WARM, identity=7)
        slow = TargetVerifier(model).run([*works, work_on(warm, Draft())], drafts)
        assert model.num_calls["logits"] == before["logits"] + 1
        assert slow[:-1] == fast


def poisoned(text_prefix: tuple[int, ...], value: float) -> Callable[[tuple[int, ...]], Tensor]:
    def table(text: tuple[int, ...]) -> Tensor:
        row = TABLE(text)
        if text[: len(text_prefix)] != text_prefix:
            return row
        row = row.clone()
        row[5] = value
        return row

    return table


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("params", PARAMS)
def test_damaged_logits_fail_their_request_alone(params: SamplingParams, value: float) -> None:
    model = TableModel(poisoned((7, 7), value), SIZE)
    healthy, ill = new_request([1, 2], params, identity=0), new_request([7, 7], params, identity=1)
    expected = TargetVerifier(TableModel(TABLE, SIZE)).run([work_on(healthy, Draft())], {})
    judged = TargetVerifier(model).run([work_on(ill, Draft()), work_on(healthy, Draft())], {})
    assert judged[1:] == expected
    assert judged[0].error is not None
    assert "damaged" in judged[0].error
    assert judged[0].bonus is None


@pytest.mark.parametrize(
    "error", [ForethoughtError("bad grammar"), ValueError("x"), RuntimeError("y"), IndexError("z"), ZeroDivisionError()]
)
def test_a_failing_constraint_fails_its_request_alone(error: Exception) -> None:
    for params in PARAMS:
        healthy, ill = new_request([1, 2], params, identity=0), new_request([1, 2], params, identity=1)
        expected = TargetVerifier(TableModel(TABLE, SIZE)).run([work_on(healthy, Draft())], {})
        verifier = TargetVerifier(TableModel(TABLE, SIZE))
        verifier.constrain(1, Failing(error))
        judged = verifier.run([work_on(healthy, Draft()), work_on(ill, Draft())], {})
        assert judged[:1] == expected
        assert judged[1] == Judged(error=str(error) or type(error).__name__)


def test_a_draft_that_does_not_fit_fails_its_request_alone() -> None:
    right = draft_for(new_request([1, 2], WARM), 3)
    assert right.laws_KV is not None
    for wrong, said in (
        (Draft(right.tokens, right.laws_KV[:2]), r"laws \(2, 12\)"),
        (Draft(right.tokens, right.laws_KV[:, :5]), r"laws \(3, 5\)"),
        (Draft([*right.tokens[:2], (right.tokens[2] + 1) % SIZE], right.laws_KV), "scheduled"),
        (Draft(), "scheduled"),
    ):
        requests = [new_request([1, 2], WARM, identity=identity) for identity in range(2)]
        verifier = TargetVerifier(TableModel(TABLE, SIZE))
        judged = verifier.run([work_on(request, right) for request in requests], {0: wrong, 1: right})
        assert judged[0].error is not None
        assert re.search(said, judged[0].error)
        assert judged[1].error is None


def test_what_the_judgement_must_not_swallow_is_not_swallowed() -> None:
    """A defect of the engine, here a missing attribute, is no request's failure."""
    verifier, request = TargetVerifier(TableModel(TABLE, SIZE)), new_request([1], WARM)
    verifier.constrain(0, Failing(AttributeError("defect")))
    with pytest.raises(AttributeError, match="defect"):
        verifier.run([work_on(request, Draft())], {})


class Only:
    """A constraint that allows one token after so many tokens of output, and all before."""

    is_complete = True

    def __init__(self, num_free: int, token: int) -> None:
        self.num_free, self.token, self.length = num_free, token, 0

    def masks(self, draft: Sequence[int]) -> list[np.ndarray]:
        masks = []
        for place in range(len(draft) + 1):
            free = self.length + place < self.num_free
            masks.append(np.ones(SIZE, dtype=bool) if free else np.arange(SIZE) == self.token)
            if place < len(draft) and not masks[-1][draft[place]]:
                break
        return masks

    def commit(self, tokens: Sequence[int]) -> None:
        self.length += len(tokens)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_allowed_is_an_error_only_where_it_is_reached(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, min_tokens=8)
    best = int(TABLE((1, 2)).argmax())
    for tokens, is_reached in (([], False), ([best], temperature == 0.0), ([0], False)):
        request, draft = new_request([1, 2], params), Draft(list(tokens))
        verifier = TargetVerifier(TableModel(TABLE, SIZE), eos_token_ids=[0])
        verifier.constrain(0, Only(1, 0))  # after one token only the end, which min_tokens forbids
        judged = verifier.run([work_on(request, draft)], {0: draft})[0]
        assert (judged.error is not None) == is_reached
        if is_reached:
            assert judged.error is not None
            assert "no token is allowed here" in judged.error
        else:
            assert judged.accepted == 0


@pytest.mark.parametrize("params", [GREEDY, WARM, PARAMS[4]])
def test_a_constrained_text_keeps_to_its_constraint(params: SamplingParams) -> None:
    for seed in range(15):
        request = new_request([1, 2], dataclasses.replace(params, seed=seed), room=12)
        verifier = TargetVerifier(TableModel(TABLE, SIZE))
        verifier.constrain(0, NoMultiples())
        num_rejected = 0
        while request.remaining > 0:
            draft = draft_for(request, min(3, request.remaining - 1))
            judged = verifier.run([work_on(request, draft)], {0: draft})[0]
            num_rejected += judged.accepted < len(draft.tokens)
            settle(request, draft, judged)
        sums = np.cumsum(request.tokens[2:])
        assert (sums % 3 != 0).all()
        assert num_rejected > 0


def test_what_was_forgotten_is_gone_and_the_name_may_be_used_again() -> None:
    verifier, draft = TargetVerifier(TableModel(TABLE, SIZE), eos_token_ids=[0]), Draft()
    for params in PARAMS:
        request = new_request([1, 2], params)
        verifier.constrain(0, NoMultiples())
        verifier.run([work_on(request, draft)], {})
        verifier.forget(request)
        again = new_request([1, 2], params)
        fresh = TargetVerifier(TableModel(TABLE, SIZE), eos_token_ids=[0])
        assert verifier.run([work_on(again, draft)], {}) == fresh.run([work_on(again, draft)], {})
        verifier.forget(again)
    assert not verifier._judges
    assert not verifier._constraints


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 9), st.integers(0, 8), st.booleans()), min_size=1, max_size=5
    ),
    st.integers(1, 7),
)
def test_rows_name_every_token_its_place_and_its_pages(
    shares: list[tuple[int, int, int, bool]], page_size: int
) -> None:
    works, free = [], iter(generator(0, "test.pages").permutation(400).tolist())
    for identity, (start, length, num_draft, decides) in enumerate(shares):
        request = Request(identity, [1], GREEDY, 100)
        request.pages = [next(free) for _ in range((start + length - 1) // page_size + 1 + identity % 2)]
        tokens = [(7 * identity + place) % SIZE for place in range(length)]
        works.append(Work(request, start, tokens, min(num_draft, length - 1) if decides else 0, decides))
    rows = build_rows(works, page_size)
    row, wanted = 0, []
    for sequence, work in enumerate(works):
        for offset, token in enumerate(work.tokens):
            position = work.start + offset
            assert rows.tokens_N[row] == token
            assert rows.sequence_N[row] == sequence
            assert (rows.positions_N[row], rows.visible_N[row]) == (position, position + 1)
            page = work.request.pages[position // page_size]
            assert rows.pages_SP[sequence, position // page_size] == page
            assert rows.slots_N[row] == page * page_size + position % page_size
            if work.decides and offset >= len(work.tokens) - work.num_draft - 1:
                wanted.append(row)
            row += 1
    assert row == len(rows.tokens_N)
    assert rows.logits_M.tolist() == wanted
    assert all(array.dtype == np.int32 for array in vars(rows).values() if array is not None)


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SamplingParams(temperature=0.7, seed=6, top_k=20)])
@pytest.mark.parametrize("method", ["none", "draft", "ngram"])
def test_the_real_paged_model_gives_the_tokens_of_generate(pair: Pair, params: SamplingParams, method: str) -> None:
    params = dataclasses.replace(params, max_tokens=20)
    for prompt in ([1, 2, 3, 1, 2], [9]):
        expected = generate(pair[0], prompt, params, method=method, draft=pair[1], num_speculative_tokens=4)  # pyright: ignore
        state = DecodeState(list(prompt), params, Chance(params.seed), 32)
        if method == "draft":
            state.draft = CachedModel(pair[1], 64)
        verifier = TargetVerifier(TorchPagedModel(pair[0], 16, 4))
        made = continue_text(verifier, PROPOSERS[method], state, k=4, num_new=20)
        assert made == expected.result().token_ids


def test_every_drafted_token_is_accepted_rejected_or_discarded_once() -> None:
    """R7: the accounts against a trace kept by other means, 100,000 drafted tokens and more."""
    rng, counts = generator(0, "test.accounts"), Statistics()
    trace = {"accepted": 0, "rejected": 0, "discarded": 0, "drafted": 0, "emitted": 0}
    while trace["drafted"] < 100_000:
        num_drafted = int(rng.integers(0, 9))
        accepted = int(rng.integers(0, num_drafted + 1))
        num_emitted = int(rng.integers(1, accepted + 2))  # a request may end anywhere inside
        fates = ["accepted"] * accepted + ["rejected"] * (accepted < num_drafted)
        fates += ["discarded"] * (num_drafted - len(fates))
        fates = [fate if place < num_emitted else "discarded" for place, fate in enumerate(fates)]
        for fate in fates:
            trace[fate] += 1
        trace["drafted"] += num_drafted
        trace["emitted"] += num_emitted
        counts.count_round(num_drafted, Verdict(accepted, 0), num_emitted)
        assert counts.drafted == counts.accepted + counts.rejected + counts.discarded
    assert {name: getattr(counts, name) for name in trace} == trace
