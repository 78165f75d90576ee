"""Reported log-probabilities: the model's own, whatever the request's parameters do to its law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.decode.tables import TableModel, new_request, random_table, work_on

from forethought.core.rng import generator
from forethought.decode import SamplingParams
from forethought.decode.batching.verifier import TargetVerifier
from forethought.decode.draft import Draft
from forethought.decode.law.logprobs import token_logprobs


def test_values_ranks_and_the_likeliest() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]]))
    first, second = token_logprobs(logits, [2, 3], 2)
    assert math.isclose(first.logprob, math.log(0.2), rel_tol=1e-6)
    assert (first.rank, [token for token, _ in first.top]) == (3, [1, 3])
    assert math.isclose(first.top[0][1], math.log(0.4), rel_tol=1e-6)
    assert (second.rank, [token for token, _ in second.top]) == (1, [0, 1])  # equals by id
    assert token_logprobs(logits, [0, 0], 0)[0].top == []
    assert len(token_logprobs(logits, [0, 0], 20)[0].top) == 4


def test_figures_are_those_of_a_sort_and_do_not_depend_on_the_batch() -> None:
    logits = torch.from_numpy(generator(0, "test.logprobs").standard_normal((6, 501))).float()
    tokens = [5, 0, 500, 44, 3, 2]
    together = token_logprobs(logits, tokens, 7)
    for row, (token, entry) in enumerate(zip(tokens, together, strict=True)):
        assert token_logprobs(logits[row : row + 1], [token], 7) == [entry]
        logs = logits[row].double() - torch.logsumexp(logits[row].double(), -1)
        order = sorted(range(501), key=lambda place, logs=logs: (-float(logs[place]), place))
        assert [place for place, _ in entry.top] == order[:7]
        assert entry.rank == order.index(token) + 1
        np.testing.assert_allclose(entry.logprob, float(logs[token]), atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_a_verdict_reports_raw_figures_of_every_kept_token(temperature: float) -> None:
    table = random_table(12, 4)
    params = SamplingParams(
        temperature=temperature, top_k=4, logprobs=3, repetition_penalty=1.5, logit_bias={3: 5.0}, seed=1
    )
    verifier = TargetVerifier(TableModel(table, 12))
    for seed_draft in range(12):
        request = new_request([1, 2, 3], params)
        draft = Draft([int(table((1, 2, 3)).argmax()), seed_draft % 12])
        judged = verifier.run([work_on(request, draft)], {0: draft})[0]
        verifier.forget(request)
        assert judged.bonus is not None
        assert judged.logprobs is not None
        kept = [*draft.tokens[: judged.accepted], judged.bonus]
        assert len(judged.logprobs) == len(kept)
        for place, entry in enumerate(judged.logprobs):
            raw = table((1, 2, 3, *kept[:place])).double()
            logs = raw - torch.logsumexp(raw, -1)
            assert math.isclose(entry.logprob, float(logs[kept[place]]), abs_tol=1e-9)
            assert entry.rank == int((logs > logs[kept[place]]).sum()) + 1
            assert [token for token, _ in entry.top] == logs.topk(3).indices.tolist()
