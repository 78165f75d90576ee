"""Who may come in: the key on every route there is, and no web page through a server without one (R44)."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from forethought.core.errors import ArtefactError, ConfigError
from forethought.serve import ServerConfig, read_key
from forethought.serve.guard import KeyCheck
from tests.serve.house import House

KEY = "0123456789abcdef0123456789abcdef"


def _routes(house: House) -> list[tuple[str, str]]:
    """Every method of every path that the application has, asked of the application itself."""
    found = [
        (method, route.path.replace("{name:path}", "table"))
        for route in house.application.routes
        if isinstance(route, Route)
        for method in sorted(route.methods or {"GET"})
    ]
    assert len(found) >= 10
    return found


def test_every_route_but_health_wants_the_key(new_house: Callable[..., House]):
    house = new_house(key=KEY)
    wrong = ["", KEY, "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer {KEY} x", f"Token {KEY}",
             "Basic !!!", "Basic " + base64.b64encode(KEY.encode()).decode(), "Bearer \xff"]  # fmt: skip
    for method, path in [*_routes(house), ("GET", "/nowhere"), ("POST", "/health/../metrics"), ("TRACE", "/")]:
        for shown in wrong:
            answer = house.http.request(method, path, headers={"authorization": shown.encode("latin-1")})
            assert answer.status_code == (200 if path == "/health" and method in ("GET", "HEAD") else 401), (
                path,
                shown,
            )
        basic = base64.b64encode(f"anyone:{KEY}".encode()).decode()
        for shown in (f"Bearer {KEY}", f"bearer {KEY}", f"Basic {basic}"):
            assert house.http.request(method, path, headers={"authorization": shown}).status_code != 401


def test_a_browser_is_asked_for_a_password_only_where_a_person_opens_the_page(new_house: Callable[..., House]):
    house = new_house(key=KEY)
    assert house.http.get("/", headers={"authorization": ""}).headers["www-authenticate"].startswith("Basic ")
    assert house.http.get("/v1/models", headers={"authorization": ""}).headers["www-authenticate"] == "Bearer"


def test_a_key_in_the_address_is_no_key(new_house: Callable[..., House]):
    house = new_house(key=KEY)
    answer = house.http.get(f"/v1/models?key={KEY}&api_key={KEY}", headers={"authorization": ""})
    assert answer.status_code == 401
    assert KEY not in answer.text


def test_a_refused_body_is_not_read(new_house: Callable[..., House]):
    house = new_house(key=KEY)
    answer = house.http.post("/v1/completions", content=b"x" * 500_000, headers={"authorization": "Bearer no"})
    assert answer.status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil"])
def test_without_a_key_only_local_names_are_answered(house: House, host: str):
    assert house.http.get("/v1/models", headers={"host": host}).status_code == 403
    assert house.http.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
def test_local_names_are_answered(house: House, host: str):
    assert house.http.get("/v1/models", headers={"host": host}).status_code == 200


def test_a_web_page_elsewhere_cannot_post_without_asking(house: House):
    """Content types that a browser sends across sites unasked are not taken, and asking (OPTIONS) is not granted."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        body = b'{"model":"table","prompt":"a"}'
        assert house.http.post("/v1/completions", content=body, headers={"content-type": kind}).status_code == 415
    asked = house.http.options("/v1/completions", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in asked.headers


def test_nothing_but_this_machine_is_listened_to_unless_told():
    assert ServerConfig().host == "127.0.0.1"
    assert ServerConfig().is_loopback
    assert not ServerConfig(host="0.0.0.0").is_loopback


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Path):
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert read_key(file, {}) == KEY
    assert read_key(None, {"FORETHOUGHT_API_KEY": "other"}) == "other"
    assert read_key(file, {"FORETHOUGHT_API_KEY": "other"}) == KEY
    assert read_key(None, {}) is None
    for content in ("", "  \n", "two words", "naïve", "a\x00b"):
        file.write_text(content)
        with pytest.raises(ConfigError, match="printable"):
            read_key(file, {})
    file.write_text("x" * 5000)
    with pytest.raises(ArtefactError):
        read_key(file, {})


@pytest.mark.nightly
def test_the_time_of_a_refusal_tells_nothing_of_the_key():
    from scipy.stats import ks_2samp

    check = KeyCheck(KEY)
    first, last = b"Bearer x" + KEY[1:].encode(), b"Bearer " + KEY[:-1].encode() + b"x"

    def times(shown: bytes) -> list[int]:
        found: list[int] = []
        for _ in range(10_000):
            began = time.perf_counter_ns()
            check(shown)
            found.append(time.perf_counter_ns() - began)
        return found

    # Of several runs the best is meant: whatever else the machine does comes and goes, a leak would stay.
    assert max(ks_2samp(times(first), times(last)).pvalue for _ in range(5)) > 0.01


def test_answers_do_not_tell_of_the_inside(house: House):
    """No answer to nonsense holds a path, a module's name or a trace."""
    odd: list[Any] = [
        house.http.get("/v1/../../etc/passwd"), house.http.get("/%00"), house.http.get("/static/index.html"),
        house.http.put("/v1/models"), house.http.post("/v1/completions", content=b"{}"), house.complete(prompt=3),
        house.http.get("/docs"), house.http.get("/v1/models/%2e%2e%2fconfig.json"),
    ]  # fmt: skip
    for answer in odd:
        assert 400 <= answer.status_code < 500
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        for word in ("Traceback", "site-packages", "/src/", "pydantic", "forethought."):
            assert word not in answer.text
        assert "server" not in answer.headers
