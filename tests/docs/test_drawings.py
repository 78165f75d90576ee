"""Every committed result is drawn: well formed, small, asking for nothing, with the figures that the JSON holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from scripts.readme_figures import BEGIN, END, rows, with_figures
from scripts.result_charts import DRAWINGS, all_charts, chart, intervals

from tests.conftest import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"
NAMES = [
    path.relative_to(RESULTS).with_suffix("").as_posix()
    for path in [*sorted(RESULTS.glob("*.json")), *sorted((RESULTS / "studies").glob("*.json"))]
]


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return all_charts(RESULTS)


def test_every_result_is_drawn_and_shown(drawn: dict[str, str]):
    page = (REPOSITORY / "docs" / "reference" / "benchmarks.md").read_text()
    assert set(DRAWINGS) <= set(NAMES), "a drawing of a result that is not there"
    for name in NAMES:
        assert name in drawn
        assert f"](drawings/{name.replace('/', '-')}.svg)" in page


def test_a_drawing_is_light_and_whole_and_asks_for_nothing(drawn: dict[str, str]):
    for name, text in drawn.items():
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg"), name
        assert len(text) < 64_000, name
        assert "prefers-color-scheme:dark" in text
        assert "<script" not in text
        assert set(re.findall(r'(?:href|src)="([^"#]+)', text)) == set()


def test_written_figures_are_not_cut(drawn: dict[str, str]):
    figures = json.loads((RESULTS / "startup.json").read_text())["figures"]
    assert f">{figures['import_seconds']:,.4g}<" in drawn["startup"]


def test_a_study_without_a_drawing_of_its_own_shows_what_has_an_interval():
    record = {
        "summary": {"a": {"mean": 1.0, "interval": [0.5, 1.5]}, "b": [2.0, -1.0, 3.0], "c": [True, 1, 2], "d": "x"}
    }
    assert list(intervals(record["summary"])) == [("a", 1.0, 0.5, 1.5), ("b", 2.0, -1.0, 3.0)]
    text = chart("studies/new", record)
    assert text is not None
    assert "b 2" in text
    assert chart("studies/new", {"summary": {"only": "words"}}) is None
    # A study under way lacks parts that its drawing wants; what it has is drawn.
    assert chart("studies/control_tasks", record) == text


def test_the_table_of_the_readme_follows_the_results(tmp_path: Path):
    """A figure that changes changes its row, a result that is not there has none, and nothing else is touched."""
    readme = f"# A\n\n{BEGIN}\nold\n{END}\n\nrest\n"
    record = json.loads((RESULTS / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(record))
    before = with_figures(readme, tmp_path)
    assert before.startswith("# A\n")
    assert before.endswith(f"{END}\n\nrest\n")
    assert "old" not in before
    assert before.count("\n| ") == 2
    record["figures"]["throughput_over_bare_all"] = 0.5
    (tmp_path / "train.json").write_text(json.dumps(record))
    assert "0.500 [" in with_figures(readme, tmp_path)
    assert with_figures(before, tmp_path) != before
    assert with_figures("no marks", tmp_path) == "no marks"
    assert len(rows(RESULTS)) >= 6


def test_files_that_are_drawn_no_more_are_not_left_behind(drawn: dict[str, str]):
    kept = {path.name for path in Path(REPOSITORY / "docs" / "reference" / "drawings").glob("*.svg")}
    assert kept == {f"{name.replace('/', '-')}.svg" for name in drawn}
