"""The index of attacks names tests that exist, and every attack that the reliability tests ask for is in it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.project.named import missing_tests

INDEX = (Path(__file__).parent / "README.md").read_text()
# Reliability test R47, word for word; YAML is read nowhere.
ASKED = (
    "pickled weights",
    "forged safetensors headers",
    "path traversal in names",
    "symlinks in artefacts",
    "JSON bombs",
    "config that names a class",
    "prompt with control tokens",
)


def test_every_named_test_exists() -> None:
    assert missing_tests(INDEX) == []


def test_every_attack_that_is_asked_for_is_there() -> None:
    rows = re.findall(r"^\| ([^|]+) \| `", INDEX, re.MULTILINE)
    assert set(ASKED) <= set(rows)
    assert not [path for path in (REPOSITORY / "src").rglob("*.py") if "import yaml" in path.read_text()]


def test_every_file_of_attacks_is_in_the_index() -> None:
    for path in (REPOSITORY / "tests").rglob("test_attacks.py"):
        assert str(path.relative_to(REPOSITORY)) in INDEX
