"""What a user can give wrongly is refused before it costs anything, with the figures that tell what to do."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch

from forethought.core.errors import ConfigError, DataError, RunExistsError, TrainingError
from forethought.core.run import read_records
from forethought.data import Corpus, open_corpus
from forethought.nn import load_language_model
from forethought.pretrain import StudyConfig, fit, ladder, prepare
from forethought.pretrain.inputs import check_mixture
from forethought.pretrain.members import train_members
from forethought.pretrain.slices import held_out_slices
from forethought.train import OptimiserConfig
from tests.app.workshop import small_config, small_text
from tests.pretrain.small import small_corpus, small_fit, small_members


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("bad"))


def test_a_corpus_smaller_than_one_batch_is_refused_by_every_training(corpus: Path, tmp_path: Path):
    tokens = open_corpus(corpus).train.num_tokens
    rows = tokens // 32 + 1
    wide = small_fit(corpus, batch_size=rows)
    message = (
        rf"gives {tokens:,} training tokens, fewer than one batch of {rows} windows of 32 tokens \({rows * 32:,}\)"
    )
    with pytest.raises(DataError, match=message):
        fit(wide, tmp_path / "fit")
    with pytest.raises(DataError, match=message):
        train_members(small_members(corpus, fit=wide), tmp_path / "members")
    study = StudyConfig(fit=wide, sizes=(wide.model,), data=(1024,), recipes=("regularised",))
    with pytest.raises(DataError, match="fewer than one batch"):
        ladder(study, tmp_path / "ladder")
    assert list(tmp_path.iterdir()) == [], "a corrected command may use the names"
    just = replace(wide, batch_size=rows - 1, loop=replace(wide.loop, steps=1))
    assert fit(just, tmp_path / "fit")["steps"] == 1
    accumulating = replace(just, loop=replace(just.loop, accumulate=2))
    with pytest.raises(DataError, match="fewer than one batch"):
        fit(accumulating, tmp_path / "more")


def twins(place: Path) -> Path:
    """Write documents and a near-copy of each, which differs in one word."""
    text = small_text(place / "text.jsonl", 40)
    lines = text.read_text().splitlines()
    copies = [json.dumps({"text": json.loads(line)["text"].replace("Story", "Tale")}) for line in lines]
    text.write_text("\n".join([*lines, *copies]) + "\n")
    return text


def test_validation_text_that_leaks_is_dropped_and_counted_or_refused(tmp_path: Path):
    text = twins(tmp_path)
    config = small_config(text).corpus
    with pytest.raises(DataError, match=r"\d+ held-out document\(s\) share too many 13-grams with earlier splits"):
        prepare([str(text)], tmp_path / "refused", replace(config, leak_policy="refuse"))
    assert not (tmp_path / "refused").exists()
    kept = prepare([str(text)], tmp_path / "kept", replace(config, leak_policy="report"))
    dropped = prepare([str(text)], tmp_path / "dropped", config)
    leaked = dropped.report["leaks"]["leaked"]
    assert leaked["validation"] > 0
    assert dropped.validation.num_documents == kept.validation.num_documents - leaked["validation"]
    training = {text_of(dropped, number) for number in range(dropped.train.num_documents)}
    for number in range(dropped.validation.num_documents):
        document = dropped.tokenizer.decode(dropped.validation.document(number)[:-1])
        assert document.replace("Tale", "Story") not in {each.replace("Tale", "Story") for each in training}


def text_of(corpus: Corpus, number: int) -> str:
    return corpus.tokenizer.decode(corpus.train.document(number)[:-1])


def test_text_to_mix_in_that_holds_held_out_documents_is_refused(corpus: Path, tmp_path: Path):
    opened = open_corpus(corpus)
    secret = opened.tokenizer.decode(opened.test.document(0)[:-1])
    lines = [json.loads(line) for line in small_text(tmp_path / "fresh.jsonl", 12).read_text().splitlines()]
    fresh = [{"text": each["text"][::-1]} for each in lines]
    for name, documents in (("clean", fresh), ("leaky", [*fresh, {"text": "Once more. " + secret}])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, documents)) + "\n")
        config = replace(opened.config, tokenizer=str(corpus), validation_share=0.0, test_share=0.0)
        prepare([str(tmp_path / f"{name}.jsonl")], tmp_path / name, config)
    settings = small_members(corpus, mixture=str(tmp_path / "leaky"), mixture_share=0.5, train_tokens=1024, epochs=0.2)
    with pytest.raises(
        DataError, match=r"1 of \d+ held-out documents of the slice 'report' stand in the training text"
    ):
        train_members(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train_members(replace(settings, mixture=str(tmp_path / "clean")), tmp_path / "run")
    check_mixture(open_corpus(tmp_path / "leaky"), held_out_slices(opened, 512), threshold=1.0)


def test_a_fit_that_diverges_names_the_step_and_keeps_the_last_good_checkpoint(corpus: Path, tmp_path: Path):
    settings = small_fit(corpus, optimiser=OptimiserConfig(lr=1e12, weight_decay=1.0))
    loop = replace(settings.loop, clip_norm=None, checkpoint_every=1, steps=40)
    with pytest.raises(TrainingError, match=r"is (nan|inf) at step \d+; .* in a new run") as caught:
        fit(replace(settings, loop=loop), tmp_path / "run")
    named = int(re.findall(r"at step (\d+)", str(caught.value))[0])
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert str(kept[-1].parent) in str(caught.value)
    assert int(kept[-1].name.rpartition("-")[2]) == named - 1
    tensors = safetensors.torch.load_file(kept[-1] / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "model").exists()
    records = [record for record in read_records(tmp_path / "run" / "metrics.jsonl") if record["event"] == "train"]
    assert max(record["step"] for record in records) == named - 1


def test_text_that_changed_under_a_run_is_refused_with_both_hashes_and_nothing_is_lost(tmp_path: Path):
    text = small_text(tmp_path / "text.jsonl", 60)
    settings = small_fit(text, sources=(str(text),))
    settings = replace(settings, loop=replace(settings.loop, steps=4))
    fit(settings, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    before = open_corpus(tmp_path / "run" / "corpus").identity
    original = text.read_text()
    text.write_text(original + json.dumps({"text": "one more document, and another corpus"}) + "\n")
    after = prepare([str(text)], tmp_path / "probe", settings.corpus).identity
    with pytest.raises(RunExistsError, match=rf"\({before[:16]}\) than those given now \({after[:16]}\)"):
        fit(settings, tmp_path / "run", exists="resume")
    assert load_language_model(tmp_path / "run")
    text.write_text(original)
    assert fit(settings, tmp_path / "run", exists="resume")["steps"] == 4


def test_a_prepared_corpus_that_changed_is_refused_with_both_hashes(tmp_path: Path):
    place = small_corpus(tmp_path)
    settings = small_fit(place)
    settings = replace(settings, loop=replace(settings.loop, steps=4))
    fit(settings, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    before = open_corpus(place).identity
    shutil.rmtree(place)
    after = open_corpus(small_corpus(tmp_path, 70)).identity
    with pytest.raises(ConfigError, match=rf"another corpus \({before[:16]}\).*\({after[:16]}\); restore that corpus"):
        fit(settings, tmp_path / "run", exists="resume")
