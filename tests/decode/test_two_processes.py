"""The engine with its draft in a process of its own: the same law and tokens, and a draft that dies changes nothing."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tests.decode.engines import as_prompts, num_differences, random_prompts, save_pair, tokens_of

from forethought.decode import LLM, SamplingParams, distribution, open_model

Open = Callable[..., LLM]


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("two"), seed=1, noise=0.3)


@pytest.fixture
def open_llm(places: tuple[Path, Path]) -> Iterator[Open]:
    opened: list[LLM] = []

    def make(method: str | None = "ssd", transport: str = "process", **speculative: Any) -> LLM:
        settings = {"method": method, "num_speculative_tokens": 3, "budget": 8, "transport": transport}
        settings |= {"model": str(places[1])} if method is not None else {}
        opened.append(LLM(places[0], speculative_config=settings | speculative, num_threads=1, max_num_seqs=64))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()


@pytest.mark.parametrize("transport", ["process", "thread"])
def test_greedy_tokens_are_the_plain_ones(open_llm: Open, transport: str) -> None:
    prompts = random_prompts(24, seed=50)
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    plain = tokens_of(open_llm(None), prompts, params)
    llm = open_llm(transport=transport)
    assert num_differences(plain, tokens_of(llm, prompts, params)) == 0
    assert num_differences(plain[:3], [tokens_of(llm, [prompt], params)[0] for prompt in prompts[:3]]) == 0
    assert llm.metrics()["by_source"].get("cache", 0) > 0


TOP, LENGTH, SAMPLES = 3, 4, 6000
PROMPT = [7, 30, 11]


def exact_law(target: Path, temperature: float) -> dict[tuple[int, ...], float]:
    """The target's law of the next LENGTH tokens, every one drawn from its TOP likeliest."""
    model = open_model(target).model
    params = SamplingParams(temperature=temperature, top_k=TOP)
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LENGTH):
        longer: dict[tuple[int, ...], float] = {}
        for text, share in law.items():
            with torch.inference_mode():
                law_V = distribution(model(torch.tensor([[*PROMPT, *text]]))[0, -1], params)
            for token in law_V.nonzero().flatten().tolist():
                longer[(*text, token)] = share * float(law_V[token])
        law = longer
    return law


def p_value(llm: LLM, law: dict[tuple[int, ...], float], temperature: float) -> float:
    """The chi-square test of sampled texts against their law, rare ones pooled."""
    made: Counter[tuple[int, ...]] = Counter()
    for start in range(0, SAMPLES, 500):
        params = [
            SamplingParams(max_tokens=LENGTH, temperature=temperature, top_k=TOP, seed=seed, ignore_eos=True)
            for seed in range(start, start + 500)
        ]
        made.update(tuple(tokens) for tokens in tokens_of(llm, [PROMPT] * 500, params))
    assert set(made) <= set(law)
    expected = np.array([SAMPLES * share for share in law.values()])
    observed = np.array([made[text] for text in law])
    rare = expected < 5.0
    pooled_expected = np.append(expected[~rare], expected[rare].sum())
    pooled_observed = np.append(observed[~rare], observed[rare].sum())
    keep = pooled_expected > 0
    return float(stats.chisquare(pooled_observed[keep], pooled_expected[keep] * SAMPLES / pooled_expected.sum()).pvalue)


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_sampled_texts_follow_the_targets_law(open_llm: Open, places: tuple[Path, Path], temperature: float) -> None:
    llm = open_llm()
    assert p_value(llm, exact_law(places[0], temperature), temperature) > 1e-4
    sources = llm.metrics()["by_source"]
    assert sources.get("cache", 0) > 100
    accepted, drafted = (llm.metrics()["counters"][name] for name in ("accepted_tokens", "drafted_tokens"))
    assert 0.1 < accepted / drafted < 0.98


def test_the_same_test_sees_a_bias(open_llm: Open, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    # The function of the same name hides the module.
    module = sys.modules["forethought.decode.law.verify"]
    monkeypatch.setattr(module, "residual", lambda target_V, draft_V: target_V)
    assert p_value(open_llm(transport="in-process"), exact_law(places[0], 1.5), 1.5) < 1e-6


def test_a_draft_killed_in_the_middle_changes_no_token_and_delays_little(open_llm: Open) -> None:
    prompts = random_prompts(6, seed=60)
    params = SamplingParams(max_tokens=150, temperature=0.0, ignore_eos=True)
    plain = tokens_of(open_llm(None), prompts, params)
    llm = open_llm()
    process_id = llm.draft_process_id
    assert process_id is not None
    made: list[list[int]] = [[] for _ in prompts]
    longest, last = 0.0, time.perf_counter()
    for number, chunk in enumerate(llm.stream(as_prompts(prompts), params)):
        made[chunk.prompt_index] += chunk.token_ids
        now = time.perf_counter()
        if number == 40:
            os.kill(process_id, signal.SIGKILL)
        elif number > 40:
            longest = max(longest, now - last)
        last = now
    assert num_differences(plain, made) == 0
    assert longest < 2.0
    assert num_differences(plain, tokens_of(llm, prompts, params)) == 0
    assert not llm.metrics()["source"]["healthy"]


def test_a_stopped_draft_is_not_waited_for(open_llm: Open) -> None:
    prompts = random_prompts(2, seed=61)
    params = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)
    plain = tokens_of(open_llm(None), prompts, params)
    llm = open_llm()
    tokens_of(llm, prompts, params)
    process_id = llm.draft_process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGSTOP)
    try:
        started = time.perf_counter()
        assert num_differences(plain, tokens_of(llm, prompts, params)) == 0
        assert time.perf_counter() - started < 20.0
    finally:
        os.kill(process_id, signal.SIGCONT)


def test_closing_ends_the_process(open_llm: Open) -> None:
    llm = open_llm()
    process_id = llm.draft_process_id
    assert process_id is not None
    llm.generate("the cat", SamplingParams(max_tokens=4))
    llm.close()
    for _ in itertools.repeat(None, 100):
        if not Path(f"/proc/{process_id}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{process_id}").exists()
