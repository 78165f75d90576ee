"""The face of the engine: every method gives the plain tokens, requests do not feel their neighbours, nothing leaks."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.decode.engines import as_prompts, num_differences, random_prompts, save_pair, tokens_of

from forethought.core.errors import ArtefactError, ConfigError, InputError
from forethought.core.rng import generator
from forethought.decode import LLM, SamplingParams, generate, open_model

Open = Callable[..., LLM]


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def open_llm(places: tuple[Path, Path]) -> Iterator[Open]:
    """Open engines on the pair and close them after the test."""
    opened: list[LLM] = []

    def make(method: str | None = None, *, speculative: dict[str, Any] | None = None, **options: Any) -> LLM:
        settings: dict[str, Any] = {"method": method, "transport": "in-process"}
        settings |= {"num_speculative_tokens": 4, "budget": 8}
        if method in ("ssd", "draft"):
            settings["model"] = str(places[1])
        llm = LLM(places[0], speculative_config=settings | (speculative or {}), num_threads=1, **options)
        opened.append(llm)
        return llm

    yield make
    for llm in opened:
        llm.close()


GREEDY = SamplingParams(max_tokens=32, temperature=0.0, ignore_eos=True)
METHODS = ["ngram", "draft", "ssd"]


@pytest.mark.parametrize("k", [1, 3, 5, 8])
@pytest.mark.parametrize("method", METHODS)
def test_greedy_speculation_gives_the_plain_tokens(open_llm: Open, method: str, k: int) -> None:
    prompts = random_prompts(17, seed=k)
    plain = tokens_of(open_llm(), prompts, GREEDY)
    fast = open_llm(method, speculative={"num_speculative_tokens": k})
    assert num_differences(plain, tokens_of(fast, prompts, GREEDY)) == 0
    assert fast.metrics()["counters"]["drafted_tokens"] > 0


@pytest.mark.parametrize("transport", ["in-process", "thread"])
@pytest.mark.parametrize("method", METHODS)
def test_the_executor_of_accelerators_gives_the_same_greedy_tokens(open_llm: Open, method: str, transport: str) -> None:
    prompts = random_prompts(7, seed=5)
    plain = tokens_of(open_llm(), prompts, GREEDY)
    fast = open_llm(method, speculative={"transport": transport}, backend="graphed")
    assert fast.backend == "GraphedPagedModel"
    assert num_differences(plain, tokens_of(fast, prompts, GREEDY)) == 0
    sources = fast.metrics()["by_source"]
    assert sources["cache" if method == "ssd" else method] > 0


def test_sampled_tokens_of_the_accelerators_executor_are_a_function_of_the_seed(open_llm: Open) -> None:
    prompts, params = random_prompts(4, seed=6), SamplingParams(max_tokens=24, temperature=0.9, ignore_eos=True, seed=3)
    one, other = (tokens_of(open_llm("ssd", backend="graphed"), prompts, params) for _ in range(2))
    assert one == other
    assert one == tokens_of(open_llm("ssd"), prompts, params)


def test_what_was_read_before_is_told_once_whatever_n(open_llm: Open) -> None:
    llm = open_llm("ssd", block_size=4)
    (prompt,) = as_prompts([list(range(1, 23))])
    params = SamplingParams(max_tokens=6, n=3, ignore_eos=True)
    assert llm.generate(prompt, params)[0].num_cached_tokens == 0
    assert llm.generate(prompt, params)[0].num_cached_tokens == 20
    plain = open_llm("ssd", block_size=4, enable_prefix_caching=False)
    assert [plain.generate(prompt, params)[0].num_cached_tokens for _ in range(2)] == [0, 0]


def test_a_device_that_is_not_there_is_named(places: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="the device 'nowhere' cannot be used here"):
        LLM(places[0], device="nowhere")
    settings = {"method": "draft", "model": str(places[1]), "device": "meta"}
    with pytest.raises(ConfigError, match="'meta' holds no weights"):
        LLM(places[0], speculative_config=settings)


@pytest.mark.nightly
@pytest.mark.parametrize("k", [1, 3, 5, 8])
@pytest.mark.parametrize("method", METHODS)
def test_greedy_speculation_gives_the_plain_tokens_of_two_thousand_prompts(open_llm: Open, method: str, k: int) -> None:
    prompts = random_prompts(2000, seed=100)
    params = SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True)
    plain = tokens_of(open_llm(max_num_seqs=64), prompts, params)
    fast = open_llm(method, speculative={"num_speculative_tokens": k}, max_num_seqs=64)
    assert num_differences(plain, tokens_of(fast, prompts, params)) == 0


@pytest.mark.parametrize(
    "options", [{}, {"fan_out": "uniform"}, {"fallback": "ngram"}, {"fallback": "none", "budget": 2}]
)
def test_every_way_of_preparing_gives_the_plain_tokens(open_llm: Open, options: dict[str, Any]) -> None:
    prompts = random_prompts(12, seed=7)
    plain = tokens_of(open_llm(), prompts, GREEDY)
    assert num_differences(plain, tokens_of(open_llm("ssd", speculative=options), prompts, GREEDY)) == 0


@pytest.mark.parametrize("method", ["draft", "ssd"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_engine_gives_the_tokens_of_the_single_sequence_oracle(
    open_llm: Open, places: tuple[Path, Path], method: str, temperature: float
) -> None:
    target, draft = (open_model(place).model for place in places)
    llm = open_llm(method)
    for seed, prompt in enumerate(random_prompts(6, seed=3)):
        params = SamplingParams(max_tokens=24, temperature=temperature, seed=seed, ignore_eos=True)
        made = tokens_of(llm, [prompt], params)[0]
        # The engine decides the first token with the prompt, before there is a draft; from there on all is alike.
        later = replace(params, max_tokens=23)
        oracle = generate(target, [*prompt, made[0]], later, method="draft", draft=draft, num_speculative_tokens=4)
        assert made[1:] == oracle.result().token_ids


def schedules(llm: LLM, prompts: list[list[int]], params: list[SamplingParams], seed: int) -> list[list[int]]:
    """Add requests at random moments and return their tokens."""
    rng = generator(seed, "test.schedule")
    order = rng.permutation(len(prompts)).tolist()
    made: dict[int, list[int]] = {}
    place: dict[int, int] = {}
    while order or llm.engine.has_work:
        for _ in range(int(rng.integers(0, 4))):
            if order:
                number = order.pop()
                request_id = llm.engine.add(prompts[number], params[number])
                place[request_id], made[request_id] = number, []
        for update in llm.engine.step():
            made[update.request_id] += update.token_ids
    return [made[request_id] for request_id in sorted(place, key=place.__getitem__)]


@pytest.mark.parametrize("method", [None, "draft", "ssd"])
def test_tokens_do_not_depend_on_neighbours_arrival_chunks_prefixes_or_preemption(
    open_llm: Open, method: str | None
) -> None:
    stem = random_prompts(1, longest=40, seed=9)[0] * 2
    prompts = [stem + tail for tail in random_prompts(6, seed=10)] + random_prompts(6, seed=11)
    params = [
        SamplingParams(max_tokens=20, temperature=0.0 if n % 2 else 0.9, seed=n, ignore_eos=True)
        for n in range(len(prompts))
    ]
    alone = open_llm(method, enable_prefix_caching=False)
    expected = [tokens_of(alone, [prompt], own)[0] for prompt, own in zip(prompts, params, strict=True)]
    preempted = 0
    settings = [
        {"max_num_batched_tokens": 16, "max_num_seqs": 8, "block_size": 4, "num_blocks": 40},
        {"max_num_batched_tokens": 64, "max_num_seqs": 3, "block_size": 16},
        {"max_num_seqs": 12, "block_size": 1, "num_blocks": 240, "enable_prefix_caching": False},
    ]
    for number, options in enumerate(settings):
        llm = open_llm(method, **options)
        for seed in range(4):
            got = schedules(llm, prompts, params, 10 * number + seed)
            # A draft that comes late changes which random numbers decide, never the law; greedy tokens never change.
            same = range(len(prompts)) if method is None else range(1, len(prompts), 2)
            assert [got[n] for n in same] == [expected[n] for n in same]
        preempted += llm.metrics()["scheduler"]["num_preemptions"]
    assert preempted > 0


def test_abort_storm_leaves_nothing(open_llm: Open) -> None:
    llm = open_llm("ssd", num_blocks=64, block_size=4)
    rng = generator(5, "test.storm")
    live: list[int] = []
    for number in range(400):
        params = SamplingParams(max_tokens=int(rng.integers(1, 12)), temperature=0.0, n=int(rng.integers(1, 3)))
        live.append(llm.engine.add(random_prompts(1, seed=number)[0], params))
        for _ in range(int(rng.integers(0, 3))):
            llm.engine.step()
        while live and rng.random() < 0.6:
            llm.engine.abort(live.pop(int(rng.integers(len(live)))))
    for request_id in live:
        llm.engine.abort(request_id)
    llm.engine.step()
    assert not llm.engine.has_work
    state = llm.metrics()["scheduler"]
    assert state["num_running"] == 0
    assert state["num_waiting"] == 0
    assert state["num_pages_used"] == 0
    llm.engine.scheduler.pages.check()


def test_a_poisoned_request_fails_alone(open_llm: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    from forethought.decode.batching import verifier

    prompts = random_prompts(3, seed=4)
    params = SamplingParams(max_tokens=12, temperature=0.8, ignore_eos=True)
    llm = open_llm()
    healthy = tokens_of(llm, prompts, params)
    judged = verifier.verify
    poisoned = SamplingParams(max_tokens=12, temperature=0.8, ignore_eos=True, seed=666)

    def failing(*arguments: Any, **more: Any) -> Any:
        if failing.armed:
            failing.armed = False
            raise ValueError("bad numbers")
        return judged(*arguments, **more)

    failing.armed = True  # type: ignore[attr-defined]
    monkeypatch.setattr(verifier, "verify", failing)
    outputs = llm.generate(as_prompts([prompts[0], *prompts]), [poisoned, params, params, params])
    assert outputs[0].outputs[0].finish_reason == "error"
    assert "bad numbers" in str(outputs[0].outputs[0].error)
    assert [output.outputs[0].token_ids for output in outputs[1:]] == healthy


def test_n_samples_differ_repeat_and_share_the_prompt(open_llm: Open) -> None:
    llm = open_llm("draft", block_size=4)
    prompt = random_prompts(1, longest=40, seed=21)[0] + [5] * 20
    params = SamplingParams(max_tokens=16, temperature=1.0, n=4, seed=3, ignore_eos=True)
    first = [sample.token_ids for sample in llm.generate(as_prompts([prompt]), params)[0].outputs]
    again = [sample.token_ids for sample in llm.generate(as_prompts([prompt]), params)[0].outputs]
    assert first == again
    assert len({tuple(tokens) for tokens in first}) > 1
    alone = tokens_of(llm, [prompt], SamplingParams(max_tokens=16, temperature=1.0, seed=3, ignore_eos=True))
    assert first[0] == alone[0]
    assert llm.metrics()["counters"]["cached_prompt_tokens"] > 0


def test_stream_joins_to_generate_and_stops_when_it_is_left(open_llm: Open) -> None:
    llm = open_llm("ssd")
    params = SamplingParams(max_tokens=20, temperature=0.0)
    whole = llm.generate(["the cat", "a dog"], params)
    texts, tokens = ["", ""], [[], []]
    for chunk in llm.stream(["the cat", "a dog"], params):
        texts[chunk.prompt_index] += chunk.text
        tokens[chunk.prompt_index] += chunk.token_ids
    assert texts == [output.outputs[0].text for output in whole]
    assert tokens == [output.outputs[0].token_ids for output in whole]
    stream = llm.stream("the cat", SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True))
    next(stream)
    stream.close()
    llm.engine.step()
    assert not llm.engine.has_work


def test_logprobs_come_with_every_token(open_llm: Open) -> None:
    plain, fast = open_llm(), open_llm("ssd")
    params = SamplingParams(max_tokens=12, temperature=0.0, logprobs=3, ignore_eos=True)
    for llm in (plain, fast):
        sample = llm.generate(as_prompts(random_prompts(1, seed=2)), params)[0].outputs[0]
        assert sample.logprobs is not None
        assert len(sample.logprobs) == len(sample.token_ids) == 12
        for token, entries in zip(sample.token_ids, sample.logprobs, strict=True):
            assert entries[token].rank == 1
            assert len(entries) == 3
        total = sum(entries[token].logprob for token, entries in zip(sample.token_ids, sample.logprobs, strict=True))
        assert sample.cumulative_logprob == pytest.approx(total)


def test_wrong_arguments_get_one_clear_error(places: tuple[Path, Path], open_llm: Open, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_model_len"):
        LLM(places[0], max_model_length=5)
    with pytest.raises(ConfigError, match="num_speculative_tokens"):
        LLM(places[0], speculative_config={"method": "ngram", "num_speculative_token": 3})
    with pytest.raises(ConfigError, match="needs a draft model"):
        LLM(places[0], speculative_config={"method": "ssd"})
    with pytest.raises(ConfigError, match="temperature"):
        SamplingParams(temprature=0.5)  # type: ignore[call-arg]
    with pytest.raises(ArtefactError):
        LLM(tmp_path)
    llm = open_llm()
    with pytest.raises(InputError, match="no tokens"):
        llm.generate({"prompt_token_ids": []})
    with pytest.raises(InputError, match="knows 0 to 299"):
        llm.generate({"prompt_token_ids": [300]})
    with pytest.raises(InputError, match="context"):
        llm.generate({"prompt_token_ids": [1] * 256})
    with pytest.raises(InputError, match="prompt_token_ids"):
        llm.generate({"tokens": [1]})
    with pytest.raises(InputError, match="for 1 prompts"):
        llm.generate("a", [SamplingParams(), SamplingParams()])
    assert not llm.engine.has_work


def test_a_draft_equal_to_the_target_is_always_accepted(places: tuple[Path, Path]) -> None:
    for method in ("draft", "ssd"):
        settings = {
            "method": method,
            "model": str(places[0]),
            "num_speculative_tokens": 4,
            "budget": 16,
            "transport": "in-process",
        }
        with LLM(places[0], speculative_config=settings, num_threads=1) as llm:
            for temperature in (0.0, 1.0):
                params = SamplingParams(max_tokens=31, temperature=temperature, ignore_eos=True)
                output = llm.generate(as_prompts(random_prompts(1, seed=1)), params)[0].outputs[0]
                statistics = output.statistics
                assert statistics.rejected == 0
                # One token with the prompt, then five a round.
                assert statistics.target_forwards == 1 + 6
                assert statistics.drafted == statistics.accepted + statistics.discarded


def test_engines_are_freed(places: tuple[Path, Path]) -> None:
    import os

    def num_descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def once() -> None:
        settings = {"method": "ssd", "model": str(places[1]), "transport": "in-process"}
        with LLM(places[0], speculative_config=settings, num_threads=1) as llm:
            llm.generate("the", SamplingParams(max_tokens=4))

    once()
    before = num_descriptors()
    for _ in range(5):
        once()
    gc.collect()
    assert num_descriptors() == before
