"""The generated references equal the code, which also pins every public name, signature and flag."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
from scripts import write_reference

from tests.conftest import REPOSITORY


def test_references_are_up_to_date():
    script = REPOSITORY / "scripts" / "write_reference.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False, env=os.environ
    )
    if sys.version_info[:2] != (3, 11):
        pytest.skip("signatures and help are worded by Python 3.11; another version words them differently")
    assert done.returncode == 0, done.stdout + done.stderr


# core has no flat face: each module is one idea, imported by its name.
ROOMS = tuple(room for room in write_reference.ROOMS if room != ".core")


@pytest.mark.parametrize("room", ROOMS)
def test_public_faces_are_sorted_and_real(room: str):
    module = importlib.import_module(f"forethought{room}")
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_registries_are_documented():
    """Every entry of a registry is named in the references or the docs."""
    from forethought.app.cli import VERBS
    from forethought.app.recipes import RECIPES
    from forethought.core.artefact import LOADERS
    from forethought.decode import METHODS
    from forethought.train import OPTIMISERS, SCHEDULES, STRATEGIES

    text = "\n".join(page.read_text() for page in (REPOSITORY / "docs").rglob("*.md"))
    for registry in (VERBS, RECIPES, LOADERS, METHODS, OPTIMISERS, SCHEDULES, STRATEGIES):
        for name in registry:
            assert name in text, name
