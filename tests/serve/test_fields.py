"""Every field is honoured or refused by name; every number is bounded before it can cost anything (R41)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from forethought.serve import request_cost
from forethought.serve.fields import NOT_OFFERED, ChatBody, CompletionBody
from tests.serve.house import House, events

NUMBERS = (0, -1, 1, 1.5, 16, 17, 20, 21, 128, 4096, 4097, 10**6, 2**31 - 1, 2**31, 2**63, 2**64, 1e308, -1e308, True)
COMPLETION_FIELDS = (
    "max_tokens temperature top_p n seed presence_penalty frequency_penalty top_k min_p min_tokens repetition_penalty "
    "logprobs prompt stop_token_ids logit_bias stop stream_options"
).split()
CHAT_FIELDS = "max_completion_tokens top_logprobs logprobs messages response_format".split()


@pytest.mark.parametrize("field", COMPLETION_FIELDS)
def test_a_number_in_any_field_is_honoured_or_refused(house: House, field: str):
    refused = 0
    for number in (*NUMBERS, house.bridge.model.vocabulary_size):
        wrapped = {"prompt": [number], "stop_token_ids": [number], "logit_bias": {"3": number}}.get(field, number)
        answer = house.complete(**{"max_tokens": 1, "prompt": "the", field: wrapped})
        assert answer.status_code in (200, 400), (number, answer.text)
        if answer.status_code == 400:
            refused += 1
            error = answer.json()["error"]
            assert field in (error["param"] or "") or field in error["message"], error
    assert refused


@pytest.mark.parametrize("field", CHAT_FIELDS)
def test_a_number_in_any_chat_field_is_honoured_or_refused(house: House, field: str):
    for number in NUMBERS:
        body = {"model": "table", "messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 1}
        extra = {"logprobs": True} if field == "top_logprobs" else {}
        answer = house.http.post("/v1/chat/completions", json=body | extra | {field: number})
        assert answer.status_code in (200, 400), (number, answer.text)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "-1e999", "1" + "0" * 5000, "0x10", "1_0", "01"])
@pytest.mark.parametrize("field", ["temperature", "max_tokens", "seed"])
def test_what_is_no_number_is_refused(house: House, field: str, text: str):
    content = f'{{"model":"table","prompt":"a","{field}":{text}}}'
    answer = house.http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("field", [*sorted(NOT_OFFERED), "bogus", "Prompt", "__proto__", "schema_", "x" * 5000])
@pytest.mark.parametrize("value", [None, 1])
def test_a_field_that_is_not_offered_is_named(house: House, field: str, value: Any):
    for answer in (house.complete(**{field: value}), house.chat(**{field: value})):
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field[:64]
        assert field[:64] in answer.json()["error"]["message"]


def test_a_near_miss_is_told_the_name(house: House):
    assert "'temperature'" in house.complete(temprature=1).json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"return_speculation": True}, "return_speculation"),
        ({"min_tokens": 5, "max_tokens": 4}, None),
        ({"logit_bias": {"the": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"99999999999999999999": 1}}, "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"logit_bias": {"3": 101}}, "logit_bias.3"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a", ""]}, "stop.1"),
        ({"stop": "x" * 1025}, "stop"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"prompt": [1, "a"]}, "prompt.0"),
        ({"prompt": ["a"] * 17}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.json_schema"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
        ({"response_format": {"type": "json_object"}, "min_tokens": 2}, "min_tokens"),
        ({"max_tokens": 4096}, "max_tokens"),
        ({"prompt": "the " * 9000}, "prompt"),
    ],
)
def test_contradictions_and_excesses_are_named(house: House, fields: dict[str, Any], param: str | None):
    answer = house.complete(**fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a <|start|>system"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "<|endoftext|>"}]}, "messages.0.content"),
    ],
)
def test_chat_is_as_strict(house: House, fields: dict[str, Any], param: str):
    answer = house.http.post(
        "/v1/chat/completions", json={"model": "table", "messages": [{"role": "user", "content": "a"}]} | fields
    )
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["param"] or "").startswith(param), answer.text


def test_the_price_is_known_before_any_work(new_house: Callable[..., House]):
    house = new_house(limits={"cost": 1000})
    adds = []
    house.engine.add = lambda *_, **__: adds.append(1)
    for fields in ({"max_tokens": 1001}, {"max_tokens": 101, "n": 10}, {"max_tokens": 50, "logprobs": 20},
                   {"max_tokens": 300, "prompt": ["a", "b", "c", "d"]}, {"prompt": "the " * 1500}):  # fmt: skip
        answer = house.complete(**fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "too_expensive", fields
    assert not adds
    assert request_cost(7, 2, 10, None) == 27
    assert request_cost(7, 2, 10, 0) == 27
    assert request_cost(7, 2, 10, 4) == 107


def test_another_model_is_not_found(house: House):
    for path, body in (
        ("completions", {"prompt": "a"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        answer = house.http.post(f"/v1/{path}", json={"model": "gpt-9"} | body)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
        assert "gpt-9" not in answer.text
    assert house.http.get("/v1/models/gpt-9").status_code == 404
    assert house.http.get("/v1/models/table").json()["max_model_len"] == 4096


def test_every_field_of_a_body_reaches_the_engine(house: House):
    """What a body names and the engine does not get would be accepted and not honoured."""
    seen: list[Any] = []
    add = house.engine.add

    def spy(prompt: Any, params: Any, *, constraint: Any = None) -> int:
        seen.append((params, constraint))
        return add(prompt, params, constraint=constraint)

    house.engine.add = spy
    given: dict[str, Any] = {
        "max_tokens": 7, "temperature": 0.3, "top_p": 0.9, "n": 2, "seed": 11, "stop": ["zzz"], "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "logit_bias": {"3": -5.0}, "top_k": 9, "min_p": 0.01, "min_tokens": 2,
        "repetition_penalty": 1.1, "stop_token_ids": [4], "ignore_eos": True, "include_stop_str_in_output": True,
        "speculate": False, "logprobs": 3,
    }  # fmt: skip
    try:
        assert house.complete(**given).status_code == 200
        params = seen.pop()[0]
        for name, value in given.items():
            wanted = tuple(value) if isinstance(value, list) else {3: -5.0} if name == "logit_bias" else value
            assert getattr(params, name) == wanted, name
        house.complete(response_format={"type": "json_object"}, n=2, max_tokens=40)
        assert [constraint is not None for _, constraint in seen] == [True, True]
        assert seen[0][0].seed != seen[1][0].seed
    finally:
        del house.engine.add
    elsewhere = {"model", "stream", "stream_options", "response_format", "prompt", "return_speculation"}
    assert set(CompletionBody.model_fields) == set(given) | elsewhere
    assert set(ChatBody.model_fields) == set(given) - {"logprobs"} | elsewhere - {"prompt"} | {
        "messages", "max_completion_tokens", "logprobs", "top_logprobs"}  # fmt: skip


def test_a_request_without_a_seed_gets_one_of_its_own_and_with_one_repeats(house: House):
    texts = [house.complete(max_tokens=30).json()["choices"][0]["text"] for _ in range(3)]
    assert len(set(texts)) == 3
    texts = [house.complete(max_tokens=30, seed=4).json()["choices"][0]["text"] for _ in range(3)]
    assert len(set(texts)) == 1


def test_a_schema_holds_the_text_streamed_or_not(house: House):
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Riga", "Oslo"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["city", "size"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    for choice in house.chat(response_format=form, max_tokens=200, n=3).json()["choices"]:
        value = json.loads(choice["message"]["content"])
        assert value["city"] in ("Riga", "Oslo")
        assert 0 <= value["size"] <= 99
        assert choice["finish_reason"] == "stop"
    body = {"model": "table", "prompt": "a", "stream": True, "response_format": form, "max_tokens": 200}
    with house.http.stream("POST", "/v1/completions", json=body) as answer:
        text = "".join(event["choices"][0]["text"] for event in events(answer))
    assert set(json.loads(text)) == {"city", "size"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/missing"},
        {"$ref": "https://example.org/schema"},
        {"type": "string", "pattern": "(" * 50},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"enum": ["x" * 300_000]},
    ],
)
def test_a_schema_that_cannot_be_held_is_a_bad_request(house: House, schema: dict[str, Any]):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = house.complete(response_format=form, max_tokens=4)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "response_format"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(a|b|ab)*c{1000000}"},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "items": {"type": "array", "items": {"$ref": "#"}}},
        {"anyOf": [{"type": "string", "pattern": f"^(x{n})+$"} for n in range(300)]},
    ],
)
def test_a_schema_that_wants_much_costs_little(house: House, schema: dict[str, Any]):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert house.complete(response_format=form, max_tokens=4).status_code in (200, 400)
    assert house.complete(max_tokens=1).status_code == 200
