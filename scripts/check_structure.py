"""Hold the source to the house style: lengths of files and functions, and calls that have no place in it.

Usage: python scripts/check_structure.py src     (exit status 1 and one line a finding)
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE, MAX_FUNCTION, MAX_MAIN = 400, 60, 40
FORBIDDEN_CALLS = {
    "eval": "eval runs code from data",
    "exec": "exec runs code from data",
    "print": "a library writes through its progress display or its caller",
    "torch.load": "torch.load unpickles; read safetensors",
    "torch.save": "torch.save pickles; publish safetensors through core.files",
    "os.system": "no shell",
    "torch.manual_seed": "randomness comes from core.rng",
    "numpy.random.seed": "randomness comes from core.rng",
    "np.random.seed": "randomness comes from core.rng",
}
UNFINISHED = ("TODO", "FIXME", "XXX")


def findings(root: Path) -> Iterator[str]:
    """Yield one line for each place that breaks a rule."""
    for path in sorted(root.rglob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        num_lines = text.count("\n")
        if num_lines > MAX_FILE:
            yield f"{path}: {num_lines} lines; at most {MAX_FILE}"
        for number, line in enumerate(text.splitlines(), start=1):
            if any(mark in line for mark in UNFINISHED):
                yield f"{path}:{number}: unfinished mark"
        for node in ast.walk(tree):
            yield from _function_findings(path, node)
            yield from _statement_findings(path, node)


def _function_findings(path: Path, node: ast.AST) -> Iterator[str]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    size = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        first = node.body[0]
        size -= (first.end_lineno or first.lineno) - first.lineno + 1
    limit = MAX_MAIN if node.name == "main" else MAX_FUNCTION
    if size > limit:
        yield f"{path}:{node.lineno}: {node.name} has {size} lines; at most {limit}"


def _statement_findings(path: Path, node: ast.AST) -> Iterator[str]:
    where = f"{path}:{getattr(node, 'lineno', 0)}"
    if isinstance(node, ast.Global):
        yield f"{where}: global state"
    elif isinstance(node, ast.Assert):
        yield f"{where}: assert is not validation; raise an error of core.errors"
    elif isinstance(node, ast.Constant) and node.value == "cuda":
        yield f"{where}: a literal device; take the device as an argument"
    elif isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name in FORBIDDEN_CALLS:
            yield f"{where}: {name}: {FORBIDDEN_CALLS[name]}"


def main() -> int:
    """Print the findings and return the exit status."""
    roots = [Path(argument) for argument in sys.argv[1:]] or [Path("src")]
    found = [line for root in roots for line in findings(root)]
    for line in found:
        print(line)
    print(f"structure: {len(found)} findings in {sum(1 for root in roots for _ in root.rglob('*.py'))} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
