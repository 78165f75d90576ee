"""What earlier releases wrote still opens: run, corpus, model, checkpoint, report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import forethought
from forethought.app.report import write_report
from forethought.core import files
from forethought.core.checkpoint import CheckpointStore
from forethought.core.errors import ArtefactError, CheckpointError
from forethought.core.run import open_run
from forethought.data import load_tokenizer, open_corpus
from forethought.nn import load_language_model

RELEASES = sorted(Path(__file__).parent.glob("release-*"))


def test_there_are_examples():
    assert [release.name for release in RELEASES] == ["release-0.1.0"]


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_a_release_still_opens(release: Path, tmp_path: Path):
    run = open_run(release)
    corpus = open_corpus(release / "corpus")
    model = load_language_model(release)
    assert run["result"]["steps"] == 6
    assert corpus.train.num_tokens == run["result"]["corpus"]["splits"]["train"]["tokens"]
    assert load_tokenizer(release / "model").digest == corpus.tokenizer.digest
    assert sum(p.numel() for p in model.parameters()) == run["result"]["parameters"]
    checkpoint = CheckpointStore(release / "checkpoints").latest()
    assert checkpoint is not None
    assert checkpoint.step == 6
    saved = checkpoint.tensors("model")
    assert torch.equal(saved["embedding.weight"], model.embedding.weight)
    assert checkpoint.tensors("ema").keys() == saved.keys()
    assert checkpoint.tensors("optimizer")
    copy = tmp_path / "run"
    shutil.copytree(release, copy)
    assert "<svg" in write_report(copy).read_text()
    assert forethought.load(release / "corpus").identity == corpus.identity


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_a_format_from_the_future_is_named(release: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(release, copy)
    (copy / "artefact.json").write_text(json.dumps({"format": 99, "kind": "run"}))
    with pytest.raises(ArtefactError, match=r"format 99.*upgrade"):
        forethought.load(copy)
    store = CheckpointStore(copy / "checkpoints")
    (step,) = store.steps()
    place = copy / "checkpoints" / f"step-{step:08d}"
    state = files.read_json(place / "state.json")
    contents = {path.name: path.read_bytes() for path in place.iterdir() if path.name != files.MANIFEST}
    contents["state.json"] = files.dump_json({**state, "format": 99})
    files.publish(place, contents, replace=True)
    with pytest.raises(CheckpointError, match="format 99"):
        store.load(step)
