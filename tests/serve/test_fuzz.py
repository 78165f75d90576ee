"""Nonsense of every kind against the document that the server emits, and a grammar of attacks made by hand (R42)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from tests.serve.house import House, drained
from tests.serve.table import CONTROL

QUIET = [
    HealthCheck.too_slow,
    HealthCheck.filter_too_much,
    HealthCheck.data_too_large,
    HealthCheck.function_scoped_fixture,
]


def _sane(answer: httpx.Response) -> None:
    """An answer that a client can live with, whatever was asked."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert len(error["message"]) < 1000
        assert "Traceback" not in answer.text
    assert answer.headers["content-type"]


def _generated(house: House, cases: int) -> int:
    """Send what schemathesis makes of the document, and let it check the answers against the document too."""
    schemathesis = pytest.importorskip("schemathesis")
    document = house.http.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [result.ok() for result in schema.get_all_operations()]
    sent = 0
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

    checks = [not_a_server_error, content_type_conformance, response_schema_conformance]
    # Bodies are where the work is; the others have next to nothing to vary.
    weights = {operation.label: (0.52 if operation.body else 0.02) for operation in operations}
    for operation in operations:
        wanted = max(2, int(cases * weights[operation.label]))
        for mode in schemathesis.GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=(wanted + 1) // 2, deadline=None, suppress_health_check=QUIET, derandomize=True,
                      database=None, phases=[hypothesis.Phase.generate])  # fmt: skip
            def send(case: Any) -> None:
                nonlocal sent
                sent += 1
                if isinstance(case.body, dict):
                    # A text as long as it may be says nothing more than a short one, and takes the time of many.
                    if isinstance(case.body.get("max_tokens"), int) and case.body["max_tokens"] > 8:
                        case.body["max_tokens"] %= 8
                    if case.body.get("model") and sent % 2:
                        case.body["model"] = "table"
                answer = case.call(base_url=house.url)
                case.validate_response(answer, checks=checks)

            # Of operations without a body or a parameter there is nothing wrong to make.
            with suppress(Unsatisfiable):
                send()
    return sent


def test_what_schemathesis_makes_does_no_harm(house: House):
    assert _generated(house, 200) >= 200
    house.until(house.is_idle)
    assert house.complete(max_tokens=2).status_code == 200


@pytest.mark.nightly
def test_two_thousand_cases_of_schemathesis_do_no_harm(house: House):
    assert _generated(house, 2000) >= 2000
    house.until(house.is_idle)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just("\x00"), st.just("\u202e"),
    st.sampled_from([*CONTROL, "<|endoftext|>", "{{ 7 * 7 }}", "{% for a in b %}", "../../etc/passwd", "\ud800", "🙂"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
names = st.sampled_from(
    "model prompt messages max_tokens temperature top_p n seed stop stream stream_options logprobs top_logprobs "
    "logit_bias response_format top_k min_p min_tokens stop_token_ids speculate return_speculation".split()
)
bodies = st.dictionaries(st.one_of(names, names, names, st.text(max_size=8)), values, max_size=6)


@given(body=bodies, route=st.sampled_from(["completions", "chat/completions"]), usable=st.booleans())
@settings(max_examples=250, deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)
def test_bodies_of_the_right_names_and_the_wrong_values_do_no_harm(house: House, body: Any, route: str, usable: bool):
    if usable:
        base = {"prompt": "the"} if route == "completions" else {"messages": [{"role": "user", "content": "a"}]}
        body = {"model": "table", "max_tokens": 2} | base | body
    content = json.dumps(body).encode()
    _sane(house.http.post(f"/v1/{route}", content=content, headers={"content-type": "application/json"}))


@given(content=st.binary(max_size=200), chunked=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)
def test_bytes_that_mean_nothing_do_no_harm(house: House, content: bytes, chunked: bool):
    def parts() -> Iterator[bytes]:
        yield from (content[place : place + 7] for place in range(0, len(content), 7))

    sent = parts() if chunked else content
    _sane(house.http.post("/v1/completions", content=sent, headers={"content-type": "application/json"}))


LINES = [
    b"\x00\x01\x02\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"x" * 50_000,
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
    b"GET /" + b"%00%ff" * 50 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: " + b"\xff" * 100 + b"\r\n\r\n",
]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_requests_that_are_none_are_refused_or_answered(house: House, line: bytes):
    with house.connect() as connection:
        connection.sendall(line)
        connection.shutdown(1)
        answer = drained(connection)
    assert not answer or answer.startswith(b"HTTP/1.1 "), answer
    assert b" 500 " not in answer[:16]
    assert house.http.get("/health").status_code == 200


def test_the_document_says_what_is_taken(house: House):
    document = house.http.get("/openapi.json").json()
    assert json.dumps(document).count("$defs") == 0
    schemas = document["components"]["schemas"]
    for name in ("CompletionBody", "ChatBody"):
        assert schemas[name]["additionalProperties"] is False
    assert document["paths"]["/v1/completions"]["post"]["requestBody"]["required"]
    # Every reference leads somewhere.
    for reference in {part.split('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:]}:
        assert reference in schemas, reference
