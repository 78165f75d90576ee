"""The official client against the real engine over loopback: every case streamed and whole, sync and async (R43)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest

from forethought.decode import SamplingParams
from tests.serve.house import House, events

MODES = [(kind, form) for kind in ("sync", "async") for form in ("whole", "stream")]


@dataclass
class Seen:
    """What a client saw, told the same way for all modes."""

    texts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str | None] = field(default_factory=dict)
    roles: set[str] = field(default_factory=set)
    logprobs: list[Any] = field(default_factory=list)
    usage: Any = None
    ids: set[str] = field(default_factory=set)
    num_chunks: int = 0

    def take(self, answer: Any) -> None:
        self.num_chunks += 1
        self.ids.add(answer.id)
        assert answer.model == "table"
        assert answer.created > 0
        if answer.usage is not None:
            assert self.usage is None
            self.usage = answer.usage
        for choice in answer.choices:
            part = getattr(choice, "delta", None) or getattr(choice, "message", None)
            text = choice.text if part is None else part.content
            if part is not None and part.role:
                self.roles.add(part.role)
            self.texts[choice.index] = self.texts.get(choice.index, "") + (text or "")
            assert self.reasons.get(choice.index) is None
            self.reasons[choice.index] = choice.finish_reason
            if choice.logprobs is not None and choice.index == 0:
                self.logprobs.append(choice.logprobs)


@dataclass(frozen=True)
class Case:
    """A request and what must be seen of it; an error is what the client must raise instead."""

    name: str
    fields: dict[str, Any]
    check: Callable[[Seen], Any] = lambda seen: True
    error: type[openai.APIError] | None = None
    param: str | None = None


def _all_usage(seen: Seen) -> bool:
    return seen.usage.total_tokens == seen.usage.prompt_tokens + seen.usage.completion_tokens


def _chat(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
BASE: dict[str, Any] = {"max_tokens": 12, "seed": 5}

COMPLETIONS = [
    Case("plain", {"prompt": "the cat"}, lambda s: s.reasons == {0: "length"} and s.texts[0]),
    Case("greedy", {"prompt": "the cat", "temperature": 0}, lambda s: s.texts[0]),
    Case("several prompts", {"prompt": ["the cat", "the dog"]}, lambda s: set(s.texts) == {0, 1}),
    Case("token ids", {"prompt": [0, 5, 6]}, lambda s: s.usage.prompt_tokens == 3),
    Case("several token lists", {"prompt": [[0, 5], [0, 6, 7]]}, lambda s: s.usage.prompt_tokens == 5),
    Case("n", {"prompt": "the", "n": 3}, lambda s: set(s.texts) == {0, 1, 2} and s.usage.completion_tokens == 36),
    Case("n of prompts", {"prompt": ["a", "b"], "n": 2}, lambda s: set(s.texts) == {0, 1, 2, 3}),
    Case("logprobs", {"prompt": "the", "logprobs": 3},
         lambda s: sum(len(part.tokens) for part in s.logprobs) == 12
         and all(len(top) >= 1 for part in s.logprobs for top in part.top_logprobs)
         and all(value <= 0 for part in s.logprobs for value in part.token_logprobs)),
    Case("penalties", {"prompt": "the", "presence_penalty": 1.0, "frequency_penalty": 1.0}, _all_usage),
    Case("biased", {"prompt": "the", "logit_bias": {"65": 100}, "temperature": 0},
         lambda s: s.texts[0] == "a" * 12),
    Case("end of text", {"prompt": "the", "logit_bias": {"0": 100}},
         lambda s: s.reasons == {0: "stop"} and s.texts == {0: ""} and s.usage.completion_tokens == 1),
    Case("stop", {"prompt": "the", "logit_bias": {"65": 100}, "stop": "aaa"},
         lambda s: s.texts == {0: ""} and s.reasons == {0: "stop"}),
    Case("own fields", {"prompt": "the", "extra_body": {"top_k": 1, "min_p": 0.1, "speculate": False, "min_tokens": 2,
                                                        "ignore_eos": True, "repetition_penalty": 1.2}}, _all_usage),
    Case("unknown field", {"prompt": "a", "extra_body": {"bogus": 1}}, error=openai.BadRequestError, param="bogus"),
    Case("not offered", {"prompt": "a", "suffix": "b"}, error=openai.BadRequestError, param="suffix"),
    Case("too long", {"prompt": "a", "max_tokens": 5000}, error=openai.BadRequestError, param="max_tokens"),
    Case("no such model", {"prompt": "a", "model": "b"}, error=openai.NotFoundError, param="model"),
]  # fmt: skip

CHATS = [
    Case("plain", {"messages": _chat("hello")}, lambda s: s.roles == {"assistant"} and s.reasons == {0: "length"}),
    Case("turns", {"messages": _chat("a", "b", "c")}, lambda s: s.texts[0]),
    Case("parts", {"messages": [{"role": "user", "content": [{"type": "text", "text": part} for part in "ab"]}]},
         _all_usage),
    Case("system", {"messages": [{"role": "system", "content": "x"}, *_chat("a")]}, _all_usage),
    Case("n", {"messages": _chat("a"), "n": 2}, lambda s: set(s.texts) == {0, 1}),
    Case("newer maximum", {"messages": _chat("a"), "max_tokens": openai.omit, "max_completion_tokens": 4},
         lambda s: s.usage.completion_tokens == 4),
    Case("logprobs", {"messages": _chat("a"), "logprobs": True, "top_logprobs": 2},
         lambda s: sum(len(part.content) for part in s.logprobs) == 12
         and all(len(entry.top_logprobs) == 2 and bytes(entry.bytes) is not None
                 for part in s.logprobs for entry in part.content)),
    Case("logprobs alone", {"messages": _chat("a"), "logprobs": True},
         lambda s: all(entry.top_logprobs == [] for part in s.logprobs for entry in part.content)),
    Case("object", {"messages": _chat("a"), "response_format": {"type": "json_object"}, "max_tokens": 40}, _all_usage),
    Case("schema", {"messages": _chat("a"), "response_format": FORM, "max_tokens": 300},
         lambda s: set(json.loads(s.texts[0])) == {"a", "b"} and s.reasons == {0: "stop"}),
    Case("tools", {"messages": _chat("a"), "tools": [{"type": "function", "function": {"name": "f"}}]},
         error=openai.BadRequestError, param="tools"),
    Case("control token", {"messages": _chat("<|end|>")}, error=openai.BadRequestError, param="messages.0.content"),
    Case("no messages", {"messages": []}, error=openai.BadRequestError, param="messages"),
    Case("too expensive", {"messages": _chat("a"), "n": 16, "max_tokens": 900, "logprobs": True, "top_logprobs": 20},
         error=openai.BadRequestError, param="max_tokens"),
]  # fmt: skip

CASES = [("completions", case) for case in COMPLETIONS] + [("chat", case) for case in CHATS]


@pytest.fixture(scope="module")
def sync_client(real_house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real_house.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def _ask_sync(client: openai.OpenAI, route: str, stream: bool, fields: dict[str, Any]) -> Seen:
    create = client.completions.create if route == "completions" else client.chat.completions.create
    seen = Seen()
    if not stream:
        seen.take(create(**fields))
        return seen
    with create(**fields, stream=True, stream_options={"include_usage": True}) as chunks:
        for chunk in chunks:
            seen.take(chunk)
    return seen


async def _ask_async(url: str, route: str, stream: bool, fields: dict[str, Any]) -> Seen:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        create = client.completions.create if route == "completions" else client.chat.completions.create
        seen = Seen()
        if not stream:
            seen.take(await create(**fields))
            return seen
        async with await create(**fields, stream=True, stream_options={"include_usage": True}) as chunks:
            async for chunk in chunks:
                seen.take(chunk)
        return seen


@pytest.mark.parametrize(("route", "case"), CASES, ids=[f"{route}: {case.name}" for route, case in CASES])
def test_the_official_client_sees_what_it_should(real_house: House, sync_client: openai.OpenAI, route: str, case: Case):
    fields = {"model": "table", **BASE, **case.fields}
    if case.error is not None:
        for kind, form in MODES:
            with pytest.raises(case.error) as raised:
                _ask(real_house, sync_client, route, kind, form, fields)
            assert raised.value.param == case.param
        return
    answers = {mode: _ask(real_house, sync_client, route, *mode, fields) for mode in MODES}
    for (_, form), seen in answers.items():
        assert len(seen.ids) == 1
        assert all(reason is not None for reason in seen.reasons.values())
        assert _all_usage(seen)
        assert case.check(seen), seen
        assert form == "whole" or seen.num_chunks > 1
    # The same seed gives the same texts, whichever way they come.
    texts = [seen.texts for seen in answers.values()]
    assert all(other == texts[0] for other in texts)


def _ask(house: House, client: openai.OpenAI, route: str, kind: str, form: str, fields: dict[str, Any]) -> Seen:
    if kind == "sync":
        return _ask_sync(client, route, form == "stream", fields)
    return asyncio.run(_ask_async(house.url, route, form == "stream", fields))


def test_the_table_has_sixty_cases():
    assert len(CASES) * len(MODES) >= 60


def test_models_are_listed(sync_client: openai.OpenAI):
    assert [model.id for model in sync_client.models.list()] == ["table"]
    assert sync_client.models.retrieve("table").owned_by == "forethought"


def test_a_wrong_key_is_an_authentication_error(new_house: Callable[..., House]):
    house = new_house(key="right")
    with (
        openai.OpenAI(base_url=f"{house.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="right", max_retries=0) as client:
        assert len(list(client.models.list())) == 1


def test_a_full_queue_is_a_rate_limit_error_that_the_client_waits_out(new_house: Callable[..., House]):
    house = new_house(pace=0.01, limits={"open_requests": 1})
    with (
        house.connect() as connection,
        openai.OpenAI(base_url=f"{house.url}/v1", api_key="none", max_retries=0) as client,
    ):
        connection.sendall(house.post("/v1/completions", {"model": "table", "prompt": "a", "max_tokens": 120}))
        house.until(lambda: house.bridge.num_open == 1)
        with pytest.raises(openai.RateLimitError) as raised:
            client.completions.create(model="table", prompt="a")
        assert int(raised.value.response.headers["retry-after"]) >= 1
        assert client.with_options(max_retries=5).completions.create(model="table", prompt="a").choices[0].text


def test_an_error_in_the_middle_of_a_stream_reaches_the_client(new_house: Callable[..., House]):
    house = new_house(pace=0.01)
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="none", max_retries=0) as client:
        chunks = client.completions.create(
            model="table", prompt="a", max_tokens=500, stream=True, extra_body={"ignore_eos": True}
        )
        next(chunks)

        def crash() -> None:
            raise RuntimeError("planted")

        house.bridge.model.step_hook = crash
        with pytest.raises(openai.APIError, match="engine failed"):
            list(chunks)


def test_the_bytes_of_a_stream(real_house: House):
    """Each event is one line and a blank one; usage comes last, in a chunk without choices, and null before."""
    for route, body in (("completions", {"prompt": "the"}), ("chat/completions", {"messages": _chat("a")})):
        for wants_usage in (False, True):
            options = {"stream_options": {"include_usage": True}} if wants_usage else {}
            with real_house.http.stream(
                "POST", f"/v1/{route}", json={"model": "table", "stream": True, "max_tokens": 9, **options, **body}
            ) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                seen = events(answer)
            if wants_usage:
                assert seen[-1]["choices"] == []
                assert seen[-1]["usage"]["completion_tokens"] == 9
                assert all(event["usage"] is None for event in seen[:-1])
                seen.pop()
            else:
                assert not any("usage" in event for event in seen)
            assert all(len(event["choices"]) == 1 for event in seen)
            assert [event["choices"][0]["finish_reason"] for event in seen][-1] == "length"
    assert seen[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_the_server_gives_the_tokens_that_the_engine_gives_by_itself(real_house: House, tiny_pair: Any):
    from forethought.decode import LLM

    with LLM(tiny_pair[0], max_num_seqs=4, num_threads=1) as llm:
        for seed in range(3):
            params = SamplingParams(max_tokens=40, seed=seed, temperature=0.8, top_p=0.9)
            wanted = llm.generate("the cat", params)[0].outputs[0].text
            given = real_house.complete("the cat", max_tokens=40, seed=seed, temperature=0.8, top_p=0.9)
            assert given.json()["choices"][0]["text"] == wanted


def test_usage_tells_what_of_the_prompt_was_there_already(sync_client: openai.OpenAI):
    def cached(text: str) -> tuple[int, int]:
        answer = sync_client.completions.create(model="table", prompt=text, max_tokens=5, n=2)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens or 0

    text = "zebras were never named in this house before, and are now named once, slowly, letter by letter"
    first, again = cached(text), cached(text)
    assert first[1] == 0
    assert again[1] == (again[0] - 1) // 16 * 16 > 0


def test_speculation_is_told_token_by_token(real_house: House):
    body = {"model": "table", "prompt": "the cat", "max_tokens": 60, "stream": True, "seed": 2, "logprobs": 0}
    with real_house.http.stream("POST", "/v1/completions", json=body | {"return_speculation": True}) as answer:
        told = [event["choices"][0] for event in events(answer)]
    spoken = [choice["speculation"] for choice in told]
    assert sum(len(part["token_ids"]) for part in spoken) == 60
    text = "".join(choice["text"] for choice in told)
    assert text.startswith("".join(piece for part in spoken for piece in part["pieces"]))
    assert {part["source"] for part in spoken} >= {"cache"}
    for part in spoken:
        assert len(part["pieces"]) == len(part["token_ids"]) >= part["num_accepted"]
        assert not part["rejected"] or part["num_accepted"] < 3
