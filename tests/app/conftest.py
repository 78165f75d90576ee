"""A fitted target and draft, small enough to make in seconds, and the command line in a fresh directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from forethought.app.cli import main
from forethought.pretrain import fit
from tests.app.workshop import Outcome, small_config, small_text


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Call `forethought` with the given arguments in a fresh directory, in this process: torch is imported once."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        written = capsys.readouterr()
        return Outcome(status, written.out, written.err)

    return run


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with text.jsonl, a fitted target and a draft distilled from it."""
    place = tmp_path_factory.mktemp("workshop")
    settings = small_config(small_text(place / "text.jsonl"))
    fit(settings, place / "target", recipe="test")
    taught = replace(settings, sources=(str(place / "target" / "corpus"),), teacher=str(place / "target" / "model"))
    fit(taught, place / "draft", recipe="test")
    return place
