"""The report page: complete, escaped, self-contained, and readable in a real browser at every width."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from forethought.app.page import Page, Sample, Section, render, table_of
from forethought.app.report import write_report
from forethought.core.errors import ArtefactError
from forethought.core.run import Run
from forethought.pretrain import FitConfig
from tests.app.workshop import Outcome

BROWSER = shutil.which("chromium")


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action") and value]


def links_of(page: str) -> _Links:
    parser = _Links()
    parser.feed(page)
    return parser


def test_the_page_of_a_fit_shows_its_figures_and_asks_for_nothing(command: Callable[..., Outcome], workshop: Path):
    done = command("report", workshop / "target", "--json")
    assert done.status == 0, done.err
    page = (workshop / "target" / "report.html").read_text()
    result = json.loads((workshop / "target" / "result.json").read_text())
    assert done.result["validation_loss"] == result["validation_loss"]
    assert f"{result['validation_loss']:.3f}" in page
    assert page.count("<svg") >= 2
    found = links_of(page)
    assert "script" not in found.tags
    assert all(link.startswith("#") for link in found.links)
    assert not re.search(r"url\((?!#)", page)


def test_the_same_run_gives_the_same_page(workshop: Path):
    first = write_report(workshop / "draft").read_bytes()
    assert write_report(workshop / "draft").read_bytes() == first


def test_an_unfinished_run_has_a_page_too(tmp_path: Path):
    with Run.open(tmp_path / "run", config=FitConfig(), recipe="test") as run:
        for step in range(1, 5):
            run.log({"event": "train", "step": step, "loss": 5.0 - step})
    page = write_report(tmp_path / "run").read_text()
    assert "not finished" in page
    assert "train: loss" in page


def test_text_from_a_model_cannot_become_markup():
    hostile = "</pre><script>alert(1)</script><img src=x onerror=y>"
    page = render(
        Page(
            hostile,
            hostile,
            hostile,
            hostile,
            sections=[
                Section(
                    hostile,
                    hostile,
                    table=table_of([hostile], [[hostile]]),
                    samples=[Sample(hostile, hostile, hostile)],
                )
            ],
        )
    )
    tags = links_of(page).tags
    assert "script" not in tags
    assert "img" not in tags


def test_what_is_no_run_is_refused(workshop: Path):
    with pytest.raises(ArtefactError, match="no run directory"):
        write_report(workshop / "target" / "corpus")


@pytest.mark.skipif(BROWSER is None, reason="needs the browser of Debian's package chromium")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_the_page_fits_a_real_window(workshop: Path, tmp_path: Path, width: int, dark: bool):
    path = write_report(workshop / "target")
    # The page carries no script; this copy gets one that writes what the browser laid out into the title.
    probe = (
        "<script>addEventListener('load', () => { const d = document.documentElement;"
        "const svg = document.querySelector('svg').getBoundingClientRect();"
        "document.title = [d.scrollWidth, innerWidth, Math.round(svg.width), Math.round(svg.height),"
        "getComputedStyle(document.body).backgroundColor, performance.getEntriesByType('resource').length].join('|') })"
        "</script>"
    )
    page = path.read_text()
    policy = re.search(r"<meta http-equiv=[^>]*>", page)
    assert policy
    copy = tmp_path / "page.html"
    copy.write_text(page.replace(policy[0], "").replace("</body>", f"{probe}</body>"))
    # A framed page is as wide as its frame, below the least width of a browser window too.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<iframe id=f src=page.html style='width:{width}px;height:4000px;border:0'></iframe><script>"
        "addEventListener('load', () => setTimeout(() => document.body.dataset.seen ="
        "document.getElementById('f').contentDocument.title, 300))</script>"
    )
    dumped = _browse(frame, tmp_path, dark=dark)
    seen = re.search(r'data-seen="([^"]*)"', dumped)
    assert seen, dumped[-500:]
    scroll, inner, drawn_width, drawn_height, background, resources = seen[1].split("|")
    assert int(inner) == width
    assert int(scroll) <= width, "the page scrolls sideways"
    assert 0.6 * min(width, 880) < int(drawn_width) <= width
    assert int(drawn_height) > 100
    assert resources == "0"
    assert (background == "rgb(20, 23, 28)") == dark


def _browse(page: Path, profile: Path, *, dark: bool) -> str:
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--dump-dom",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--allow-file-access-from-files", "--virtual-time-budget=4000", "--window-size=1400,1000",
        f"--user-data-dir={profile / 'profile'}",
    ]  # fmt: skip
    if dark:
        flags.append("--blink-settings=preferredColorScheme=0")
    assert BROWSER
    done = subprocess.run([BROWSER, *flags, page.as_uri()], capture_output=True, text=True, timeout=90, check=False)
    return done.stdout
