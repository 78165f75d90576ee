"""Bodies and headers that are too large, lie about their length, are compressed, or hold a bomb of JSON (R37)."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.serve.house import House, drained

LIMIT = 1 << 16


@pytest.fixture
def small(new_house: Callable[..., House]) -> House:
    return new_house(limits={"body_bytes": LIMIT, "header_bytes": 8192, "body": 1.0, "header": 1.0})


def _answer(house: House, request: bytes) -> bytes:
    with house.connect() as connection:
        with suppress(ConnectionError):
            connection.sendall(request)
        return drained(connection)


def test_a_declared_body_beyond_the_limit_is_refused_unread(small: House):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for length in (LIMIT + 1, 1 << 40, 10**19, 10**30):
        answer = _answer(small, head + b"Content-Length: %d\r\n\r\n" % length)
        assert answer.split()[1] == (b"400" if length > 10**20 else b"413"), answer
        assert b"connection: close" in answer


def test_a_body_at_the_limit_is_read(small: House):
    body = b'{"model":"table","prompt":"the","max_tokens":1}'
    answer = small.http.post(
        "/v1/completions", content=body + b" " * (LIMIT - len(body)), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200


def test_a_chunked_body_is_counted(small: House):
    def parts(size: int) -> Any:
        for _ in range(size // 1024):
            yield b" " * 1024

    headers = {"content-type": "application/json"}
    large = small.http.post("/v1/completions", content=parts(8 * LIMIT), headers=headers)
    assert large.status_code == 413
    assert small.http.post("/v1/completions", content=parts(LIMIT // 2), headers=headers).status_code == 400
    assert small.application.state.service.gate.num_open == 0


def test_a_body_shorter_than_it_claims_waits_for_the_deadline_and_no_longer(small: House):
    answer = _answer(small, small.post("/v1/completions", b'{"model":"table"}' + b" " * 100)[:-50])
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_body_longer_than_it_claims_is_no_second_request(small: House):
    request = small.post("/v1/completions", {"model": "table", "prompt": "the", "max_tokens": 1})
    answer = _answer(small, request + b"GARBAGE that is no request\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200") == 1
    assert answer.count(b"HTTP/1.1 400") == 1


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: gzip\r\n",
    ],
)
def test_two_lengths_or_strange_ones_are_refused(small: House, lines: bytes):
    answer = _answer(small, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\nhello")
    assert answer.split()[1] in (b"400", b"501"), answer


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "gzip, gzip", "GZIP"])
def test_compressed_bodies_are_refused(small: House, coding: str):
    body = b'{"model":"table","prompt":"the","max_tokens":1}'
    headers = {"content-encoding": coding, "content-type": "application/json"}
    answer = small.http.post("/v1/completions", content=body, headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["param"] == "content-encoding"


def test_large_headers_are_refused(small: House):
    answer = _answer(small, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * 20000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")
    answer = _answer(small, b"GET /" + b"x" * 20000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.split()[1] in (b"400", b"414", b"431")
    assert small.http.get("/health").status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b'{"model": NaN}', b"{'a': 1}",
                                     b'{"model": "\\ud800"}', b'{"model":' + b"[" * 30000 + b"]" * 30000 + b"}",
                                     b'{"response_format":' + b'{"a":' * 100 + b"1" + b"}" * 100 + b"}",
                                     b'{"max_tokens": ' + b"9" * 60000 + b"}",
                                     b'{"prompt": [' + b"[]," * 20000 + b"[]]" + b',"model":"table"}',
                                     b"{" + b",".join(b'"k%d":1' % n for n in range(5000)) + b"}",
                                     b'{"model":"table","model":"table","prompt":1}'])  # fmt: skip
def test_json_bombs_and_what_is_no_json_are_refused(small: House, content: bytes):
    answer = small.http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert len(answer.content) < 1000


def test_another_content_type_is_refused(small: House):
    answer = small.http.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


def test_bodies_in_the_air_are_bounded_together(new_house: Callable[..., House]):
    house = new_house(limits={"body_bytes": LIMIT, "buffered_bytes": 2 * LIMIT, "body": 5.0})
    head = house.post("/v1/completions", b"x" * LIMIT)[:-LIMIT]
    with house.connect() as one, house.connect() as two, house.connect() as three:
        for connection in (one, two, three):
            connection.sendall(head + b"x" * (LIMIT - 1))
        answers = [connection for connection in (one, two, three) if _refused(connection)]
    assert len(answers) == 1
    assert house.complete(max_tokens=1).status_code == 200


def _refused(connection: Any) -> bool:
    connection.settimeout(0.5)
    try:
        return connection.recv(64).startswith(b"HTTP/1.1 503 ")
    except TimeoutError:
        return False


def test_depth_and_numbers_that_are_none_are_refused_wherever_anything_may_stand(small: House):
    schema: Any = {"type": "integer"}
    for _ in range(40):
        schema = {"properties": {"a": schema}}
    deep = json.dumps(_with_schema(schema))
    nan = json.dumps(_with_schema({"type": "number", "minimum": float("nan")}))
    for content in (deep, nan):
        answer = small.http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_json", answer.text


def _with_schema(schema: Any) -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"model": "table", "prompt": "a", "max_tokens": 3, "response_format": form}
