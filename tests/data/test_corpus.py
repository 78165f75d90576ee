"""Whole preparations: what is learnt from which split, reuse, interruption, and real corpora."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

import forethought
from forethought.core import files, rng
from forethought.core.errors import ArtefactError, CheckpointError, ConfigError, DataError, RunExistsError
from forethought.core.faults import faults
from forethought.data import (
    Corpus,
    CorpusConfig,
    PackedBatches,
    ReadOptions,
    open_corpus,
    prepare_corpus,
    stdlib_facts,
)
from forethought.data.stdlib import stdlib_files

SMALL = CorpusConfig(vocab_size=400, validation_share=0.1, test_share=0.1)
WORDS = ["alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa", "theta"]


def _texts(count: int, name: str = "corpus") -> list[str]:
    draw = rng.generator(5, name)
    return [" ".join(WORDS[i] + str(j) for i, j in draw.integers(0, 8, (60, 2))) + f"\n{n}" for n in range(count)]


def _jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def _decoded(corpus: Corpus, split: str) -> list[str]:
    dataset = getattr(corpus, split)
    return [corpus.tokenizer.decode(dataset.document(i)[:-1]) for i in range(dataset.num_documents)]


def test_a_corpus_holds_every_document_once_and_reports_what_it_did(tmp_path: Path) -> None:
    texts = _texts(120)
    source = _jsonl(tmp_path / "a.jsonl", [*texts, texts[3], texts[7] + " "])
    calls: list[tuple[str, int, int | None]] = []
    corpus = prepare_corpus([source], tmp_path / "out", SMALL, lambda *call: calls.append(call))
    splits = {name: _decoded(corpus, name) for name in ("train", "validation", "test")}
    assert sorted(text for documents in splits.values() for text in documents) == sorted(texts)
    assert all(len(documents) > 3 for documents in splits.values())
    report = corpus.report
    assert report["duplicates_removed"] == 2
    assert report["documents"] == 120
    assert report["bytes"] == sum(len(text.encode()) for text in texts)
    assert report["tokens"] == sum(report["splits"][name]["tokens"] for name in splits)
    for name, documents in splits.items():
        dataset = getattr(corpus, name)
        assert dataset.num_bytes == sum(len(text.encode()) for text in documents) == report["splits"][name]["bytes"]
        assert dataset.num_bytes == corpus.tokenizer.count_bytes(np.asarray(dataset.tokens))
    assert [call[0] for call in calls if call[0] != "leak check"][:1] == ["read"]
    assert {call[0] for call in calls} >= {"read", "leak check", "tokenizer", "encode train"}
    parts = {f"{name}.{part}" for name in splits for part in ("bin", "json", "starts")}
    assert files.verify(tmp_path / "out").keys() == parts | {"artefact.json", "corpus.json", "tokenizer.json"}
    assert isinstance(forethought.load(tmp_path / "out"), Corpus)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_the_tokenizer_learns_from_the_training_split_only(tmp_path: Path) -> None:
    texts = _texts(200)
    first = prepare_corpus([_jsonl(tmp_path / "a.jsonl", texts)], tmp_path / "first", SMALL)
    held_out = set(_decoded(first, "validation") + _decoded(first, "test"))
    # The same digest would be needed to keep the split, so the secret goes into texts until one falls where it should.
    secret = "zyzzyva"
    candidates = [f"{secret} " * 40 + str(n) for n in range(200)]
    trial = prepare_corpus([_jsonl(tmp_path / "b.jsonl", texts + candidates)], tmp_path / "trial", _reported(SMALL))
    outside = [text for text in _decoded(trial, "validation") + _decoded(trial, "test") if text not in held_out]
    inside = [text for text in _decoded(trial, "train") if secret in text]
    assert outside
    assert inside
    for name, planted, learnt in (("outside", outside, False), ("inside", inside, True)):
        source = _jsonl(tmp_path / f"{name}.jsonl", texts + planted)
        corpus = prepare_corpus([source], tmp_path / name, _reported(SMALL))
        assert (any(secret[:5].encode() in token for token in corpus.tokenizer.token_bytes)) is learnt
        assert sum(secret in text for text in _decoded(corpus, "train")) == (len(planted) if learnt else 0)


def _reported(config: CorpusConfig) -> CorpusConfig:
    return CorpusConfig(
        vocab_size=config.vocab_size,
        validation_share=config.validation_share,
        test_share=config.test_share,
        leak_policy="report",
    )


def test_a_planted_near_copy_is_dropped_from_the_held_out_split(tmp_path: Path) -> None:
    texts = _texts(150)
    base = prepare_corpus([_jsonl(tmp_path / "a.jsonl", texts)], tmp_path / "base", SMALL)
    victim = _decoded(base, "validation")[0]
    copies = [f"copy {n} {victim}" for n in range(12)]
    source = _jsonl(tmp_path / "b.jsonl", texts + copies)
    corpus = prepare_corpus([source], tmp_path / "out", SMALL)
    assert any(victim in text for text in _decoded(corpus, "train"))
    assert not any(victim in text for text in _decoded(corpus, "validation") + _decoded(corpus, "test"))
    assert corpus.report["leaks"]["leaked"]["validation"] >= 1
    assert corpus.report["leaks"]["examples"][0]["source"].endswith("b.jsonl")
    with pytest.raises(DataError, match="near-copies"):
        prepare_corpus([source], tmp_path / "refused", CorpusConfig(leak_policy="refuse", validation_share=0.1))
    assert not (tmp_path / "refused").exists()


def test_the_same_corpus_is_reused_and_another_is_not_overwritten(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(60))
    out = tmp_path / "out"
    first = prepare_corpus([source], out, SMALL)
    stamp = (out / "train.bin").stat().st_mtime_ns
    assert prepare_corpus([source], out, SMALL).identity == first.identity
    assert (out / "train.bin").stat().st_mtime_ns == stamp
    with pytest.raises(RunExistsError, match="already exists"):
        prepare_corpus([source], out, SMALL, exists="refuse")
    with pytest.raises(RunExistsError, match="another config"):
        prepare_corpus([source], out, CorpusConfig(vocab_size=300))
    _jsonl(source, _texts(61))
    with pytest.raises(RunExistsError, match="other sources"):
        prepare_corpus([source], out, SMALL)
    second = prepare_corpus([source], out, SMALL, exists="replace")
    assert second.identity != first.identity
    assert second.report["documents"] == 61
    data = bytearray((out / "train.bin").read_bytes())
    data[5] ^= 1
    (out / "train.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"train\.bin is damaged"):
        prepare_corpus([source], out, SMALL)


def test_two_preparations_give_the_same_bytes(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(80))
    for name in ("one", "two"):
        prepare_corpus([source], tmp_path / name, SMALL)
    assert files.read_manifest(tmp_path / "one") == files.read_manifest(tmp_path / "two")


def test_a_given_tokenizer_is_used_as_it_is(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(60))
    first = prepare_corpus([source], tmp_path / "one", SMALL)
    given = CorpusConfig(
        tokenizer=str(tmp_path / "one" / "tokenizer.json"), validation_share=0.1, test_share=0.1, seed=3
    )
    second = prepare_corpus([source], tmp_path / "two", given)
    assert second.tokenizer.digest == first.tokenizer.digest
    with pytest.raises(ArtefactError, match="does not exist"):
        prepare_corpus([source], tmp_path / "three", CorpusConfig(tokenizer=str(tmp_path / "none.json")))


def _tokenizer_folder(folder: Path, separator: str) -> Path:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    special, alphabet = ["</s>", "<turn>"], sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, show_progress=False, special_tokens=special, initial_alphabet=alphabet
    )
    inner.train_from_iterator(_texts(5), trainer)
    folder.mkdir()
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": separator}))
    return folder


def test_the_separator_named_beside_a_tokenizer_stays_with_the_corpus(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(60))
    given = [
        CorpusConfig(tokenizer=str(_tokenizer_folder(tmp_path / name, separator)))
        for name, separator in (("plain", "</s>"), ("turn", "<turn>"))
    ]
    plain = prepare_corpus([source], tmp_path / "one", given[0])
    assert plain.tokenizer.end_of_text == plain.train.end_of_text == 0
    assert not (tmp_path / "one" / "tokenizer_config.json").exists()
    turn = prepare_corpus([source], tmp_path / "two", given[1])
    assert turn.tokenizer.end_of_text == turn.train.end_of_text == turn.train.tokens[-1] == 1
    assert open_corpus(tmp_path / "two").tokenizer.end_of_text == 1
    (tmp_path / "two" / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="another tokenizer"):
        open_corpus(tmp_path / "two")


def test_a_corpus_is_not_reused_for_another_tokenizer_folder(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(60))
    first, second = (_tokenizer_folder(tmp_path / end.strip("</>"), end) for end in ("</s>", "<turn>"))
    prepare_corpus([source], tmp_path / "out", CorpusConfig(tokenizer=str(first)))
    assert prepare_corpus([source], tmp_path / "out", CorpusConfig(tokenizer=str(first / "tokenizer.json")))
    for other in (str(second), ""):
        with pytest.raises(RunExistsError, match="another config"):
            prepare_corpus([source], tmp_path / "out", CorpusConfig(tokenizer=other))


def test_an_unknown_choice_for_an_existing_corpus_is_refused(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(60))
    with pytest.raises(ConfigError, match="'overwrite'; known: refuse, replace, reuse"):
        prepare_corpus([source], tmp_path / "out", SMALL, exists="overwrite")  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "out").exists()


def test_the_size_limit_and_the_skip_count(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(300))
    with open(source, "a") as out:
        out.write('{"other": 1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 301: no field"):
        prepare_corpus([source], tmp_path / "refused", SMALL)
    skipped = CorpusConfig(reading=ReadOptions(on_error="skip"), vocab_size=300)
    corpus = prepare_corpus([source], tmp_path / "skipped", skipped)
    assert corpus.report["skipped"] == {"unreadable": 1}
    limited = prepare_corpus([source], tmp_path / "limited", CorpusConfig(max_bytes=30_000, vocab_size=300))
    assert 30_000 <= limited.report["bytes"] < 31_000


def test_an_interrupted_preparation_leaves_nothing(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(60))

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage.startswith("encode"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_corpus([source], tmp_path / "out", SMALL, stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]

    def full(point: str) -> None:
        if point == "publish.before_manifest":
            raise OSError(28, "No space left on device")

    with faults(full), pytest.raises(OSError, match="No space left"):
        prepare_corpus([source], tmp_path / "out", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_killed_preparation_is_never_half_published_and_its_litter_is_swept(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(60))
    program = (
        "import os, signal\nfrom forethought.data import CorpusConfig, prepare_corpus\n"
        "def die(stage, done, total):\n    stage.startswith('encode') and os.kill(os.getpid(), signal.SIGKILL)\n"
        f"prepare_corpus([{str(source)!r}], {str(tmp_path / 'out')!r}, CorpusConfig(vocab_size=300), die)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 2
    prepare_corpus([source], tmp_path / "out", SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_directories_that_are_no_corpus_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_corpus([_jsonl(tmp_path / "a.jsonl", _texts(60))], out, SMALL)
    other = prepare_corpus([_jsonl(tmp_path / "b.jsonl", _texts(60, "other"))], tmp_path / "other", SMALL)
    facts = json.loads((out / "corpus.json").read_text())
    for change, message in (
        ({"format": 9}, "has format 9"),
        ({"config": 3}, "lacks its config"),
        ({"config": facts["config"] | {"path": "x"}}, "does not fit CorpusConfig"),
    ):
        (out / "corpus.json").write_text(json.dumps(facts | change))
        with pytest.raises((ArtefactError, ConfigError), match=message):
            open_corpus(out)
    (out / "corpus.json").write_text(json.dumps(facts))
    (out / "tokenizer.json").write_text(other.tokenizer.serialised)
    with pytest.raises(DataError, match="another tokenizer"):
        open_corpus(out)
    with pytest.raises(ArtefactError):
        open_corpus(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": 10},
        {"leak_threshold": 2.0},
        {"test_share": 0.96},
        {"seed": -1},
        {"leak_policy": "ignore"},
        {"x": 1},
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        CorpusConfig(**fields)  # type: ignore[arg-type]


def test_no_source_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no source"):
        prepare_corpus([], tmp_path / "out")
    (tmp_path / "a.txt").write_text(" \n" * 50)
    with pytest.raises(DataError, match="no document"):
        prepare_corpus([tmp_path / "a.txt"], tmp_path / "out")
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(DataError, match="1 distinct document"):
        prepare_corpus([tmp_path / "a.txt"], tmp_path / "out")


def test_the_embedded_corpus_has_a_fixed_order_and_no_tests() -> None:
    found = stdlib_files()
    labels = [source.label for source in found]
    assert labels == sorted(labels, key=lambda label: label.split("/"))
    assert len(labels) > 300
    assert {"argparse.py", "json/decoder.py"} <= set(labels)
    left_out = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert not [label for label in labels if left_out & set(label.split("/"))]
    facts = stdlib_facts()
    assert facts == stdlib_facts()
    assert facts.num_files == len(labels)
    assert facts.num_bytes == sum(source.path.stat().st_size for source in found) > 5_000_000


def test_the_embedded_corpus_is_prepared(tmp_path: Path) -> None:
    config = CorpusConfig(max_bytes=1_000_000, vocab_size=512)
    corpus = prepare_corpus(["stdlib"], tmp_path / "out", config)
    assert corpus.report["sources"]["sha256"] == stdlib_facts().sha256
    assert min(corpus.train.num_documents, corpus.validation.num_documents, corpus.test.num_documents) >= 1


def test_tiny_shakespeare(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "text_small" / "tinyshakespeare.txt.gz"
    corpus = prepare_corpus([source], tmp_path / "out", CorpusConfig(vocab_size=1024))
    assert corpus.report["bytes"] == 1_115_394
    assert corpus.report["documents"] > 100
    assert corpus.validation.num_documents >= 3
    assert corpus.test.num_documents >= 3
    assert 0.8 < corpus.train.num_bytes / 1_115_394 < 0.97
    batch = PackedBatches(corpus.train, batch_size=8, context=128, seed=0).batch(3)
    assert batch.tokens_BT.max() < corpus.tokenizer.vocab_size


def test_a_part_of_the_novels_and_the_tiny_stories(shared_data: Path, tmp_path: Path) -> None:
    novels = CorpusConfig(max_bytes=3_000_000, vocab_size=512, tokenizer_bytes=1 << 19)
    corpus = prepare_corpus([shared_data / "text_general" / "novels100.jsonl.gz"], tmp_path / "novels", novels)
    assert corpus.report["split_rule"] == "rank"
    assert min(corpus.train.num_documents, corpus.validation.num_documents, corpus.test.num_documents) >= 1
    stories = CorpusConfig(max_bytes=1_000_000, vocab_size=1024)
    corpus = prepare_corpus([shared_data / "text_small" / "tinystories_lower.jsonl.gz"], tmp_path / "stories", stories)
    assert corpus.report["split_rule"] == "hash"
    assert corpus.report["documents"] > 500


def test_importing_and_preparing_needs_no_torch(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", _texts(60))
    program = (
        "import sys\nfrom forethought.data import CorpusConfig, prepare_corpus\n"
        f"prepare_corpus([{str(source)!r}], {str(tmp_path / 'out')!r}, CorpusConfig(vocab_size=300))\n"
        "sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
