"""The table of reliability tests is whole, names tests that exist, and quotes committed figures as they are."""

from __future__ import annotations

import json
import re
from functools import reduce

import pytest

from tests.conftest import REPOSITORY
from tests.project.named import missing_tests, named_tests

PAGE = (REPOSITORY / "docs" / "reliability.md").read_text()
COLUMNS = ("id", "what", "test", "asked", "stands", "planted", "gap")
_QUOTED = re.compile(r"`(\w+)\.json` `([\w.]+)` ([\d.e+-]*\d)")


def rows(text: str) -> list[dict[str, str]]:
    """Return the rows that begin with an R and a number, by column."""
    found = [line.strip().strip("|").split("|") for line in text.splitlines() if re.match(r"\| R\d", line)]
    return [dict(zip(COLUMNS, (cell.strip() for cell in cells), strict=True)) for cells in found]


def wrong_figures(text: str) -> list[str]:
    """Return the figures quoted from committed results that are not in them to the digits shown."""
    wrong = []
    for name, key, shown in _QUOTED.findall(text):
        figures = json.loads((REPOSITORY / "benchmarks" / "results" / f"{name}.json").read_text())["figures"]
        value = float(reduce(lambda inner, part: inner[part], key.split("."), figures))
        digits = len(re.sub(r"e.*|\.|^0+", "", shown.lstrip("0."))) or 1
        if f"{value:.{digits}g}" != f"{float(shown):.{digits}g}":
            wrong.append(f"{name}.json {key} is {value}, not {shown}")
    return wrong


def test_every_number_from_1_to_52_stands_once_and_in_order():
    assert [row["id"] for row in rows(PAGE)] == [f"R{number}" for number in range(1, 53)]


@pytest.mark.parametrize("row", rows(PAGE), ids=lambda row: row["id"])
def test_a_row_names_tests_that_exist_and_leaves_nothing_open(row: dict[str, str]):
    assert all(row.values()), "no cell is empty: say none"
    assert missing_tests(row["test"]) == []
    assert missing_tests(row["planted"]) == []
    assert all(function for _, function in named_tests(row["test"]))
    assert named_tests(row["test"]) or row["test"] == "none"
    if row["test"] == "none":
        assert row["gap"] != "none"
        assert row["stands"] == "not measured"


def test_quoted_figures_are_the_committed_ones():
    assert len(_QUOTED.findall(PAGE)) >= 5
    assert wrong_figures(PAGE) == []


def test_nightly_tests_are_said_to_be_nightly_and_no_others():
    for row in rows(PAGE):
        for cell in (row["test"], row["planted"]):
            for path, function in named_tests(cell):
                source = (REPOSITORY / path).read_text()
                decorators = source[: source.index(f"def {function}(")].rsplit("\n\n\n", 1)[-1]
                nightly = "\n@pytest.mark.nightly" in f"\n{decorators}"
                said = f"nightly `{path}::{function}`" in cell
                assert nightly == said, f"{row['id']}: {function}"


def test_a_wrong_row_would_be_seen():
    assert missing_tests("`tests/core/test_files.py::test_nothing_of_this_name`") != []
    assert missing_tests("`tests/core/test_no_such_file.py`") != []
    assert wrong_figures("`startup.json` `import_seconds` 0.0397") != []
    with pytest.raises(ValueError, match="zip"):
        rows("| R1 | a | b |")
