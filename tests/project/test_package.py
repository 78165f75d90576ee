"""What is installed is what is tested: the wheel is whole, light to import, and says what is missing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import forethought
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling, which the extra dev brings")
    out = tmp_path_factory.mktemp("wheel")
    return Path(next(builder.WheelBuilder(str(REPOSITORY)).build(directory=str(out), versions=["standard"])))


def test_the_wheel_holds_every_source_file_and_the_page(wheel: Path):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("forethought/")}
    source = REPOSITORY / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "forethought").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == expected
    assert "forethought/app/templates/report.html" in held
    assert "forethought/py.typed" in held


def test_the_wheel_alone_runs(wheel: Path, tmp_path: Path):
    program = (
        "import forethought, sys; assert '.whl' in forethought.__file__, forethought.__file__;"
        "from forethought.app.page import Page, render; assert '<html' in render(Page('t', 'l', 'c', 'e'));"
        "from forethought.app.cli import main; sys.exit(main(['--help']))"
    )
    environment = os.environ | {"PYTHONPATH": str(wheel)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "pretrain fit" in done.stdout


def test_the_version_is_the_one_of_the_package():
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert f'version = "{forethought.__version__}"' in text
    assert f"## {forethought.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_import_brings_no_torch_and_no_heavy_library():
    program = (
        "import sys, forethought, forethought.stats, forethought.core.run;"
        "heavy = {'torch', 'scipy', 'matplotlib', 'tokenizers', 'transformers', 'ray', 'pyarrow'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", sorted(path.stem for path in (REPOSITORY / "benchmarks").glob("[a-gi-z]*.py")))
def test_a_benchmark_names_its_flags(module: str):
    script = REPOSITORY / "benchmarks" / f"{module}.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout
    assert "--json" in done.stdout


def test_every_benchmark_has_a_committed_result_or_is_said_to_be_prepared_only():
    text = (REPOSITORY / "scripts" / "write_reference.py").read_text()
    assigned = {
        ast.unparse(node.targets[0]): node.value for node in ast.parse(text).body if isinstance(node, ast.Assign)
    }
    prepared = set(ast.literal_eval(assigned["PREPARED"]))
    folder = REPOSITORY / "benchmarks"
    scripts = {script.stem for script in folder.glob("*.py")} - {"harness"}
    measured = {path.stem for path in (folder / "results").glob("*.json")}
    assert scripts - measured == {name for name in prepared if "/" not in name}
    assert all((folder / f"{name}.py").is_file() for name in prepared)
    page = (REPOSITORY / "docs" / "reference" / "benchmarks.md").read_text()
    assert all(f"`benchmarks/{name}.py`" in page for name in prepared)
