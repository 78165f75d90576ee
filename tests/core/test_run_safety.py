"""What a run never does to a directory: take a model or a corpus for a run, or another process's run for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from forethought.core import files
from forethought.core.config import config
from forethought.core.errors import ConfigError, RunExistsError
from forethought.core.run import Run


@config
class Settings:
    width: int = 3


def open_(directory: Path, **choices: Any) -> Run:
    return Run.open(directory, config=Settings(), recipe="tiny", **choices)


@pytest.mark.parametrize("exists", ["resume", "replace"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"model_type": "llama"}'),
        ("artefact.json", '{"format": 1, "kind": "corpus"}'),
        ("artefact.json", '{"format": 1, "kind": "language-model"}'),
    ],
)
def test_a_model_or_a_corpus_is_no_run_and_is_never_replaced(
    tmp_path: Path, exists: Any, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(RunExistsError, match="no run of this library"):
        open_(tmp_path, exists=exists)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted((name, "model.safetensors"))


@pytest.mark.parametrize("exists", ["refuse", "resume"])
def test_a_run_that_another_process_made_in_between_is_kept(tmp_path: Path, exists: Any) -> None:
    def other_first(directory: Path) -> None:
        make(directory)
        with mock.patch.object(files, "make_directory", make), open_(tmp_path / "run") as run:
            run.log({"step": 1})
            run.checkpoints.save(1, {}, {})

    make = files.make_directory
    with mock.patch.object(files, "make_directory", other_first):
        if exists == "refuse":
            with pytest.raises(RunExistsError, match="already exists"):
                open_(tmp_path / "run", exists=exists)
        else:
            with open_(tmp_path / "run", exists=exists) as run:
                assert run.resumed
    with open_(tmp_path / "run", exists="resume") as run:
        assert run.metrics() == [{"step": 1}]
        assert run.checkpoints.steps() == [1]


def test_a_number_of_checkpoints_that_keeps_none_is_refused_and_the_directory_released(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep 0 is below 1"):
        open_(tmp_path / "run", keep=0)
    open_(tmp_path / "run").close()
