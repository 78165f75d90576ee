"""Tests that a page names: `tests/room/test_file.py::test_function`, or a file alone."""

from __future__ import annotations

import ast
import re
from functools import cache

from tests.conftest import REPOSITORY

_NAMED = re.compile(r"`(tests/[\w/.-]+\.py)(?:::(\w+))?`")


@cache
def _functions(path: str) -> frozenset[str]:
    tree = ast.parse((REPOSITORY / path).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def named_tests(text: str) -> list[tuple[str, str]]:
    """Return the (file, function) pairs that a text names; the function is empty where only a file is."""
    return [(path, function) for path, function in _NAMED.findall(text)]


def missing_tests(text: str) -> list[str]:
    """Return what a text names and the repository does not hold."""
    return [
        f"{path}::{function}"
        for path, function in named_tests(text)
        if not (REPOSITORY / path).is_file() or (function and function not in _functions(path))
    ]
