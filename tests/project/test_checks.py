"""The checks of the house find what they look for: each rule is shown a file that breaks it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

CHECK = REPOSITORY / "scripts" / "check_structure.py"
BROKEN = {
    "eval": "value = eval('1')\n",
    "torch.load": "import torch\nmodel = torch.load('x')\n",
    "print": "print('hello')\n",
    "assert": "def f(x):\n    assert x\n",
    "global": "x = 1\ndef f():\n    global x\n",
    "a literal device": "device = 'cuda'\n",
    "unfinished": "# TODO later\n",
    "long has 62 lines": "def long():\n" + "    x = 1\n" * 61,
    "main has 42 lines": "def main():\n" + "    x = 1\n" * 41,
    "401 lines": "x = 1\n" * 401,
    "torch.manual_seed": "import torch\ntorch.manual_seed(0)\n",
}


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(CHECK), str(folder)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", sorted(BROKEN))
def test_a_broken_rule_is_found(words: str, tmp_path: Path):
    (tmp_path / "module.py").write_text(BROKEN[words])
    done = check(tmp_path)
    assert done.returncode == 1
    assert words.split()[0] in done.stdout
    assert "structure: 1 findings" in done.stdout


def test_the_source_itself_passes():
    done = check(REPOSITORY / "src")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("place", "text", "contract"),
    [
        ("core/upward.py", "import forethought.train\n", "Imports go down the house only"),
        ("decode/sideways.py", "import forethought.pretrain\n", "Imports go down the house only"),
        ("utils/__init__.py", "", "Imports go down the house only"),
        ("nn/pickled.py", "import pickle\n", "Nothing that runs code from a file"),
        ("stats/heavy.py", "import torch\n", "The statistics know NumPy and SciPy only"),
    ],
)
def test_the_import_contracts_bite(place: str, text: str, contract: str, tmp_path: Path):
    (tmp_path / "src").mkdir()
    subprocess.run(["cp", "-r", str(REPOSITORY / "src" / "forethought"), str(tmp_path / "src")], check=True)
    (tmp_path / "pyproject.toml").write_text((REPOSITORY / "pyproject.toml").read_text())
    planted = tmp_path / "src" / "forethought" / place
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(text)
    program = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports_command as c; c()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0, done.stdout
    assert f"{contract} BROKEN" in done.stdout or place.split("/")[0] in done.stdout + done.stderr
