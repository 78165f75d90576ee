"""Every block in README and docs runs, in order, page by page, as a reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "docs" / "howto").glob("*.md")),
]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RUN, _SHOWN = ("bash", "python"), ("text",)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page with the lines they begin on."""
    return [Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in _BLOCK.finditer(text)]


def run(block: Block, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a block in a directory; a `make` line is planned in the repository instead of run, or it would recurse."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    text = re.sub(r"^make ", f"make -C {REPOSITORY} -n ", block.text, flags=re.MULTILINE)
    command = ["bash", "-euo", "pipefail", "-c", text] if block.language == "bash" else [sys.executable, "-c", text]
    if "__main__" in block.text:
        script = place / "block.py"
        script.write_text(text)
        command = [sys.executable, str(script)]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page: Path, tmp_path: Path):
    for block in blocks_of(page.read_text()):
        assert block.language in _RUN + _SHOWN, f"{page.name}:{block.line}: a block needs a language of {_RUN + _SHOWN}"
        if block.language in _RUN:
            done = run(block, tmp_path)
            assert done.returncode == 0, f"{page.name}:{block.line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_a_broken_block_is_found(tmp_path: Path):
    text = "# Page\n\n```python\nimport forethought.nothing\n```\n"
    (block,) = blocks_of(text)
    assert block.line == 3
    assert run(block, tmp_path).returncode != 0


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((REPOSITORY / "docs" / "reference").glob("*.md"))], ids=lambda p: p.name
)
def test_links_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_every_page_is_linked_from_the_index():
    index = (REPOSITORY / "docs" / "index.md").read_text()
    for page in PAGES[1:]:
        name = page.relative_to(REPOSITORY / "docs").as_posix()
        assert name == "index.md" or f"({name})" in index, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_names_that_a_page_points_at_are_there(page: Path):
    """A path in back ticks ends that of a file here; "`name` in `path`" is a word of that file."""
    text = page.read_text()
    for path in re.findall(r"`([a-z_]+(?:/\w+)+\.py|(?:benchmarks|results)/[\w/]+\.json)`", text):
        assert any(file.endswith(f"/{path}") for file in _files()), path
    for name, path in re.findall(r"`(\w+(?:\.\w+)*)` in `([a-z_]+(?:/\w+)+\.py)`", text):
        sources = [Path(file).read_text() for file in _files() if file.endswith(f"/{path}")]
        assert any(all(re.search(rf"\b{part}\b", source) for part in name.split(".")) for source in sources), name


@cache
def _files() -> list[str]:
    folders = ("src", "tests", "benchmarks", "scripts", "examples", "notebooks")
    return [str(path) for folder in folders for path in (REPOSITORY / folder).rglob("*.[pj][ys]*") if path.is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_are_shown_are_flags_of_their_verb(page: Path):
    """Blocks of text do not run; their commands name flags that the verb has, and so do those in the sentences."""
    reference = (REPOSITORY / "docs" / "reference" / "cli.md").read_text()
    sections = {part.partition("\n")[0].strip(): part for part in reference.split("\n## ")[1:]}
    text = page.read_text().replace("\\\n", " ")
    for command in re.findall(r"(?:^|`|-m )forethought ([a-z][^`\n]*)", text, re.MULTILINE):
        words = command.split()
        form = f"{' '.join(words[:2])} --from-run RUN" if "--from-run" in words else ""
        verb = next((verb for verb in (form, " ".join(words[:2]), words[0]) if verb in sections), None)
        assert verb is not None or words[0] in reference, command
        for flag in re.findall(r"(?<=\s)--[a-z][\w.-]*", command):
            assert verb is not None
            assert re.search(rf"{flag}\b", sections[verb]), f"{verb} has no {flag}"
