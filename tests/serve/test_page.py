"""The built-in page in a real Chromium: it shows tokens and where they came from, and asks nobody else for anything."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.house import House

BROWSER = shutil.which("chromium")
SHOTS = os.environ.get("FORETHOUGHT_SCREENSHOTS")
WINDOWS = [(1280, 900, False), (390, 844, False), (390, 844, True), (1280, 900, True)]

needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs the browser of Debian's package chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-quic"])
        yield opened
        opened.close()


class Tab:
    """A page of the server in a window, with all that it asked for and complained of."""

    def __init__(self, browser: Any, house: House, width: int = 1280, height: int = 900, **more: Any):
        self.context = browser.new_context(viewport={"width": width, "height": height}, **more)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(house.url)

    def __enter__(self) -> Any:
        return self

    def until(self, expression: str) -> None:
        """Wait for something; asked from outside, for the page's policy lets nothing be evaluated within."""
        end = time.monotonic() + 20
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(20)

    def __exit__(self, *_: object) -> None:
        self.context.close()


@needs_browser
@pytest.mark.parametrize(("width", "height", "dark"), WINDOWS)
def test_a_prompt_is_answered_token_by_token_in_colours(
    browser: Any, new_house: Callable[..., House], width: int, height: int, dark: bool
):
    house = new_house(pace=0.01)
    seen, steps = threading.Event(), itertools.count()
    # The engine goes no further than some steps until the first tokens were looked at, however slow the browser is.
    house.bridge.model.step_hook = lambda: seen.wait(20) and None if next(steps) > 5 else None
    with Tab(browser, house, width, height, color_scheme="dark" if dark else "light") as tab:
        page = tab.page
        tab.until("document.getElementById('status').textContent === 'ready'")
        assert page.inner_text("#model") == "table"
        page.fill("#max-tokens", "80")
        page.fill("#prompt", "the cat sat")
        page.press("#prompt", "Control+Enter")
        # Tokens come while the request runs: some are there before it has ended.
        page.wait_for_selector(".turn.made .token", state="attached")
        assert page.is_enabled("#stop")
        seen.set()
        tab.until("!document.getElementById('send').disabled")
        kinds = page.eval_on_selector_all(".turn.made .token", "all => all.map(one => one.className.split(' ')[1])")
        assert {"foreseen", "drafted", "own", "rejected"} <= set(kinds)
        assert sum(kind != "rejected" for kind in kinds) == 80
        counts = {kind: kinds.count(kind) for kind in set(kinds)}
        assert counts["foreseen"] + counts["drafted"] == sum(house.engine.counts.accepted_at.values())
        colours = page.evaluate(
            "['foreseen', 'drafted', 'own'].map(kind => getComputedStyle("
            "document.querySelector('.turn.made .token.' + kind)).backgroundColor)"
        )
        assert len(set(colours)) == 3
        assert page.inner_text("#tokens") == "80"
        assert float(page.inner_text("#speed")) > 0
        for figure in ("#acceptance", "#hits"):
            assert 0 < int(page.inner_text(figure).split()[0]) <= 100
        page.uncheck("#show-rejected")
        assert not page.is_visible(".turn.made .token.rejected")
        page.check("#show-rejected")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(20, 23, 28)") == dark
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
        if SHOTS:
            page.screenshot(path=str(Path(SHOTS) / f"serve-{width}{'-dark' if dark else ''}.png"), full_page=True)
        assert tab.asked
        assert all(url.startswith(house.url) or url == "data:," for url in tab.asked)
        assert not tab.complaints


@needs_browser
def test_it_works_by_keyboard_alone(browser: Any, new_house: Callable[..., House]):
    house = new_house(pace=0.005)
    with Tab(browser, house) as tab:
        page = tab.page
        tab.until("document.getElementById('status').textContent === 'ready'")
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id"))
        wanted = [
            "output",
            "show-rejected",
            "prompt",
            "mode",
            "max-tokens",
            "temperature",
            "speculate",
            "send",
            "clear",
        ]
        assert [name for name in reached if name in wanted][: len(wanted)] == wanted
        page.focus("#prompt")
        page.keyboard.type("the dog")
        page.focus("#send")
        page.keyboard.press("Enter")
        page.wait_for_selector(".turn.made .token", state="attached")
        tab.until("!document.getElementById('send').disabled")
        assert page.evaluate("document.activeElement.id") == "prompt"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@needs_browser
def test_a_conversation_goes_on_and_a_running_answer_can_be_stopped(browser: Any, new_house: Callable[..., House]):
    house = new_house(pace=0.01)
    with Tab(browser, house) as tab:
        page = tab.page
        tab.until("document.getElementById('status').textContent === 'ready'")
        page.select_option("#mode", "chat")
        page.fill("#max-tokens", "10")
        for turn in range(2):
            page.fill("#prompt", f"turn {turn}")
            page.click("#send")
            tab.until("!document.getElementById('send').disabled")
        assert page.locator(".turn.made").count() == 2
        assert page.evaluate("conversation.map(message => message.role).join(' ')") == "user assistant user assistant"
        page.fill("#max-tokens", "3000")
        page.fill("#prompt", "for ever")
        page.click("#send")
        tab.until("document.querySelectorAll('.turn.made')[2]?.children.length > 3")
        page.click("#stop")
        tab.until("!document.getElementById('send').disabled")
        house.until(house.is_idle)
        page.click("#clear")
        assert page.locator(".turn").count() == 0
        assert not tab.complaints


@needs_browser
def test_what_a_model_writes_never_becomes_markup(browser: Any, house: House):
    with Tab(browser, house) as tab:
        page = tab.page
        tab.until("document.getElementById('status').textContent === 'ready'")
        page.fill("#prompt", "<img src=x onerror=alert(1)><script>alert(2)</script>")
        page.fill("#max-tokens", "5")
        page.click("#send")
        page.wait_for_selector(".turn.made .token", state="attached")
        assert page.locator("#output img, #output script").count() == 0
        # The policy itself holds too, whatever the script does.
        blocked = page.evaluate(
            "new Promise(done => {"
            "addEventListener('securitypolicyviolation', event => done(event.effectiveDirective));"
            "const made = document.createElement('script'); made.textContent = 'window.hit = 1';"
            "document.body.append(made) })"
        )
        assert blocked.startswith("script-src")
        assert page.evaluate("window.hit") is None


@needs_browser
def test_an_error_is_shown_and_the_page_goes_on(browser: Any, new_house: Callable[..., House]):
    house = new_house(max_length=64)
    with Tab(browser, house) as tab:
        page = tab.page
        tab.until("document.getElementById('status').textContent === 'ready'")
        page.fill("#prompt", "the")
        page.fill("#max-tokens", "500")
        page.click("#send")
        page.wait_for_selector(".turn.error")
        assert "do not fit the context" in page.inner_text(".turn.error")
        page.fill("#max-tokens", "5")
        page.click("#send")
        page.wait_for_selector(".turn.made .token", state="attached")


@needs_browser
def test_with_a_key_the_browser_is_asked_for_it(browser: Any, new_house: Callable[..., House]):
    house = new_house(key="a-key-of-some-length")
    with Tab(browser, house, http_credentials={"username": "me", "password": "a-key-of-some-length"}) as tab:
        page = tab.page
        tab.until("document.getElementById('status').textContent === 'ready'")
        page.fill("#prompt", "the")
        page.fill("#max-tokens", "5")
        page.click("#send")
        page.wait_for_selector(".turn.made .token", state="attached")


def test_the_files_of_the_page_are_sent_with_a_strict_policy(house: House):
    for path in ("/", "/page.css", "/page.js"):
        answer = house.http.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "http://" not in answer.text
        assert "https://" not in answer.text
