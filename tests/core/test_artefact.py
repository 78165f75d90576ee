"""What opens an artefact: a fixed table, and never anything that the directory says."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import forethought
from forethought.core import artefact
from forethought.core.artefact import LOADERS, read_kind, resolve, write_kind
from forethought.core.config import config
from forethought.core.errors import ArtefactError
from forethought.core.run import Run


@config
class Settings:
    width: int = 3


def describe(directory: Path, content: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (directory / "artefact.json").write_bytes(text)
    return directory


def test_a_kind_that_was_written_is_read_back(tmp_path: Path) -> None:
    write_kind(tmp_path, "corpus", documents=3)
    assert read_kind(tmp_path) == "corpus"
    assert json.loads((tmp_path / "artefact.json").read_bytes()) == {"format": 1, "kind": "corpus", "documents": 3}


def test_an_unknown_kind_is_refused_with_the_known_ones_and_the_nearest(tmp_path: Path) -> None:
    describe(tmp_path, {"format": 1, "kind": "languagemodel"})
    with pytest.raises(ArtefactError, match=r"known kinds: .*corpus.*Did you mean 'language-model'"):
        read_kind(tmp_path)


HOSTILE = [
    "os:system",
    "forethought.core.run:open_run",
    "builtins:eval",
    "__import__('os').system('true')",
    "../run",
    "",
    None,
    5,
    ["run"],
    {"run": 1},
    "x" * 500_000,
]


@pytest.mark.parametrize("kind", HOSTILE, ids=lambda kind: repr(kind)[:30])
def test_a_kind_that_names_code_is_refused_and_nothing_is_imported(tmp_path: Path, kind: Any) -> None:
    describe(tmp_path, {"format": 1, "kind": kind})
    before = set(sys.modules)
    with (
        mock.patch.object(artefact.importlib, "import_module", side_effect=AssertionError("imported")),
        pytest.raises(ArtefactError, match="names the kind") as caught,
    ):
        forethought.load(tmp_path)
    assert set(sys.modules) == before
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.0, [1]])
def test_another_format_is_refused(tmp_path: Path, version: Any) -> None:
    describe(tmp_path, {"format": version, "kind": "run"})
    with pytest.raises(ArtefactError, match="this version reads 1 to 1; upgrade forethought"):
        read_kind(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\x80\x04K\x01.", b"{}" + b" " * (2 << 20), b"[]"])
def test_a_bomb_or_no_json_is_refused_at_once(tmp_path: Path, content: bytes) -> None:
    describe(tmp_path, content)
    started = time.monotonic()
    with pytest.raises(ArtefactError, match=r"artefact\.json"):
        forethought.load(tmp_path)
    assert time.monotonic() - started < 5


def test_no_code_lies_waiting_in_a_directory(tmp_path: Path) -> None:
    """Modules, hooks and pickles beside the description stay unread."""
    (tmp_path / "ran").unlink(missing_ok=True)
    for name in ("__init__.py", "modeling.py", "sitecustomize.py", "conftest.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with Run.open(tmp_path / "run", config=Settings(), recipe="r") as run:
        run.log({"step": 1})
    for entry in tmp_path.glob("*.py"):
        entry.rename(tmp_path / "run" / entry.name)
    (tmp_path / "run" / "weights.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert forethought.load(tmp_path / "run")["metrics"] == [{"step": 1}]
    assert not (tmp_path / "ran").exists()


def test_a_missing_directory_a_file_and_an_empty_directory_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("missing", "file"):
        with pytest.raises(ArtefactError, match=f"{name} is not a directory"):
            forethought.load(tmp_path / name)
    with pytest.raises(ArtefactError, match=r"neither artefact\.json nor a Hugging Face config\.json"):
        forethought.load(tmp_path)
    os.mkfifo(tmp_path / "artefact.json")
    with pytest.raises(ArtefactError, match="neither"):
        forethought.load(tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_hugging_face_directory_of_a_known_family_is_a_language_model(tmp_path: Path, family: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    assert resolve(tmp_path) == ("language-model", tmp_path)


@pytest.mark.parametrize("family", ["bert", ["llama"], {"a": 1}, "x" * 10_000])
def test_another_family_is_refused_with_those_that_are_known(tmp_path: Path, family: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(ArtefactError, match="families that can be opened: llama, qwen2, qwen3") as caught:
        read_kind(tmp_path)
    assert len(str(caught.value)) < 400
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtefactError, match="neither"):
        read_kind(tmp_path)


def test_a_finished_run_stands_for_its_model_one_level_deep(tmp_path: Path) -> None:
    describe(tmp_path, {"format": 1, "kind": "run"})
    assert resolve(tmp_path) == ("run", tmp_path)
    describe(tmp_path / "model", {"format": 1, "kind": "language-model"})
    assert resolve(tmp_path) == ("language-model", tmp_path / "model")


def test_a_model_that_links_back_to_its_run_ends(tmp_path: Path) -> None:
    describe(tmp_path, {"format": 1, "kind": "run"})
    (tmp_path / "model").symlink_to(".")
    assert resolve(tmp_path)[0] == "run"


def test_every_loader_in_the_table_lies_in_this_library() -> None:
    for place in LOADERS.values():
        module, _, function = place.partition(":")
        assert module.split(".")[0] == "forethought"
        assert function.isidentifier()


def test_load_calls_the_loader_of_the_kind_with_the_place(tmp_path: Path) -> None:
    describe(tmp_path, {"format": 1, "kind": "run"})
    with mock.patch("forethought.core.run.open_run", return_value="opened") as opened:
        assert forethought.load(str(tmp_path)) == "opened"
    opened.assert_called_once_with(tmp_path)
