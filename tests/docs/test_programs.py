"""Every example and every notebook runs to its last line, with small settings, and says what it should."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.docs.test_blocks import PAGES

EXAMPLES, NOTEBOOKS = REPOSITORY / "examples", REPOSITORY / "notebooks"
# A small setting for each example, and what its last lines must say.
RUNS: dict[str, tuple[Any, str]] = {
    "certify": (60, r"the same: True[\s\S]*shuffled labels: error"),
    "control": (40, r"asks to adapt: (True|False)\n[\s\S]*after learning its body again: \d"),
    "decode": (12, r"ssd    144 tokens, \d+ of them drafted\nthe three texts are equal"),
    "pretrain": (1.0, r"4 members averaged: \d\.\d{4}\nasymptote"),
    "world": (20, r"with a jump: smallest p around step 30 0\.\d+"),
}
SAYS = {
    "certificate": r"refused: the data are not those[\s\S]*refused: .*message\.bin",
    "speculation": r"budget 16: \d+ of \d+ verdicts foreseen[\s\S]*acceptance",
    "surprise": r"gain \+1: median z[\s\S]*turned round, after adapting",
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_an_example_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    setting, wanted = RUNS[name]
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")["main"](tmp_path / "out", setting)
    assert re.search(wanted, capsys.readouterr().out)


@pytest.mark.parametrize("name", sorted(SAYS))
def test_a_notebook_runs(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NOTEBOOK_OUT", str(tmp_path / "out"))
    # Enough that a sign flip is noticed, which adapting waits for.
    monkeypatch.setenv("NOTEBOOK_STEPS", "60" if name == "surprise" else "20")
    runpy.run_path(str(NOTEBOOKS / f"{name}.py"), run_name="notebook")
    assert re.search(SAYS[name], capfd.readouterr().out)


def test_all_of_them_are_run_and_named_in_the_docs():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(RUNS)
    assert {path.stem for path in NOTEBOOKS.glob("*.py")} == set(SAYS)
    text = "\n".join(page.read_text() for page in PAGES)
    for path in (*EXAMPLES.glob("*.py"), *NOTEBOOKS.glob("*.py")):
        assert f"{path.parent.name}/{path.name}" in text


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_it_is_called(path: Path):
    text = path.read_text()
    assert text.count("\n") <= 60
    assert f"Usage: python examples/{path.name}" in text.split('"""')[1]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.name)
def test_a_notebook_is_in_cells_that_tools_can_open(path: Path):
    heads = re.findall(r"^# %%.*$", path.read_text(), re.MULTILINE)
    assert path.read_text().startswith("# %% [markdown]\n# # ")
    assert set(heads) == {"# %%", "# %% [markdown]"}
    assert heads.count("# %% [markdown]") >= 4
    assert heads.count("# %%") >= 4
