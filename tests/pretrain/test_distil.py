"""Distillation in its four forms, mixtures, continued training and the share that is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forethought.core import rng
from forethought.core.errors import ConfigError
from forethought.core.run import read_records
from forethought.data import CorpusConfig, PackedBatches, open_corpus
from forethought.nn import load_language_model
from forethought.pretrain import prepare
from forethought.pretrain.batching import Mixture, labelled_windows
from forethought.pretrain.continued import ContinueConfig, average_weights, continue_training
from forethought.pretrain.distil import chain_distil, retention, sample_corpus, sequence_distil, soft_distil
from forethought.pretrain.members import seeds, steps_of, train_members
from forethought.pretrain.study import Grid
from tests.app.workshop import WORDS
from tests.pretrain.small import small_corpus, small_fit, small_members


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distil")
    settings = small_members(small_corpus(root), members=seeds(2), train_tokens=1024)
    train_members(settings, root / "teachers")
    return root


def figures(run: Path, name: str) -> list[float]:
    return [r[name] for r in read_records(run / "metrics.jsonl") if r["event"] == "train"]


def test_students_come_closer_to_the_averaged_law_and_the_cache_is_reused(place: Path, tmp_path: Path):
    teachers = [place / "teachers" / "models" / f"member-{k}" for k in (0, 1)]
    settings = small_members(place / "corpus", members=seeds(2, first=7), train_tokens=1024, epochs=6.0)
    result = soft_distil(settings, teachers, tmp_path / "students")
    for k in (0, 1):
        fall = figures(tmp_path / "students", f"divergence_{k}")
        assert fall[-1] < 0.3 * fall[0]
    assert len(list(tmp_path.glob("labels-*"))) == 1
    before = next(iter(tmp_path.glob("labels-*"))).stat().st_mtime_ns
    soft_distil(settings, teachers, tmp_path / "more")
    assert next(iter(tmp_path.glob("labels-*"))).stat().st_mtime_ns == before
    assert result["members"][0]["report_loss"] < 5.2
    with pytest.raises(ConfigError, match="no teacher was given"):
        soft_distil(settings, [], tmp_path / "none")


def test_a_chain_learns_from_its_predecessor(place: Path, tmp_path: Path):
    links = chain_distil(small_members(place / "corpus", train_tokens=1024), tmp_path / "chain", length=3)
    assert len(links) == 3
    for link in (1, 2):
        assert "divergence_0" in read_records(tmp_path / "chain" / f"link-{link}" / "metrics.jsonl")[0]
    assert "divergence_0" not in read_records(tmp_path / "chain" / "link-0" / "metrics.jsonl")[0]


def test_sampled_text_is_mixed_in_and_the_real_text_keeps_its_passes(place: Path, tmp_path: Path):
    asked: list[tuple[str, int, int]] = []

    def sampler(model: Path, num_tokens: int, seed: int) -> Iterator[str]:
        asked.append((model.name, num_tokens, seed))
        draw = rng.generator(seed, "tests.sampler")
        for _ in range(num_tokens // 20):
            yield " ".join(draw.choice(WORDS, size=30))

    members = [place / "teachers" / "models" / f"member-{k}" for k in (0, 1)]
    corpus = open_corpus(place / "corpus")
    samples = sample_corpus(sampler, members, corpus, tmp_path / "samples", num_tokens=2000)
    assert [(name, number) for name, number, _ in asked] == [("member-0", 1000), ("member-1", 1000)]
    assert asked[0][2] != asked[1][2]
    assert samples.tokenizer.digest == corpus.tokenizer.digest
    settings = small_members(place / "corpus", train_tokens=1024)
    plain, mixed = steps_of(settings, 32), steps_of(replace(settings, mixture="x", mixture_share=0.75), 32)
    assert mixed == 4 * plain
    result = sequence_distil(settings, samples, tmp_path / "students", share=0.5)
    assert result["steps"] == 2 * plain


def test_a_mixture_shows_every_real_window_as_often_as_without(place: Path):
    corpus = open_corpus(place / "corpus")
    real = PackedBatches(corpus.train, batch_size=1, context=32, seed=0)
    other = PackedBatches(corpus.test, batch_size=1, context=32, seed=0)
    mixture = Mixture(real, other, share=0.75, batch_size=4)
    rows = np.concatenate([mixture.batch(step).tokens_BT for step in range(8)])
    expected = [real.batch(i).tokens_BT[0] for i in range(8)]
    assert len(rows) == 32
    found = [any(np.array_equal(row, each) for row in rows) for each in expected]
    assert all(found)


def test_laws_over_sampled_text_join_those_over_the_real_text(place: Path, tmp_path: Path):
    corpus = open_corpus(place / "corpus")
    fit = small_fit(place / "corpus")
    fixed = labelled_windows(corpus.validation, corpus.test, fit, seed=3, share=0.5)
    count = len(labelled_windows(corpus.validation, None, fit, seed=0).tokens_WT)
    seen = np.concatenate([fixed.windows(step) for step in range(2 * count // fit.batch_size + 1)])[: 2 * count]
    assert sorted(seen[seen < count]) == list(range(count)), "every real window once an epoch"
    assert (seen >= count).sum() == count
    step = fixed.batch(2)
    assert np.array_equal(step.tokens_BT, fixed.tokens_WT[fixed.windows(2)])
    teachers = [place / "teachers" / "models" / f"member-{k}" for k in (0, 1)]
    settings = small_members(place / "corpus", members=seeds(1, first=7), train_tokens=512, epochs=2.0)
    samples = sample_corpus(
        lambda _model, tokens, seed: (
            " ".join(rng.generator(seed, "t", n).choice(WORDS, 30)) for n in range(tokens // 20)
        ),
        teachers,
        corpus,
        tmp_path / "samples",
        num_tokens=1000,
    )
    plain = soft_distil(settings, teachers, tmp_path / "plain")
    mixed = soft_distil(settings, teachers, tmp_path / "mixed", samples=samples, sampled_share=0.5)
    assert mixed["steps"] == 2 * plain["steps"]
    assert len(list(tmp_path.glob("labels-*"))) == 2, "other windows, another cache"
    fall = figures(tmp_path / "mixed", "divergence_0")
    assert fall[-1] < 0.6 * fall[0]


def test_retention_is_the_papers_and_says_when_there_is_nothing_to_keep():
    kept = retention(single=(3.57, 0.005), student=(3.3635, 0.005), teacher=(3.32, 0.005))
    assert kept["retention"] == pytest.approx(0.826, abs=1e-3)
    low, high = kept["interval"]
    assert low < 0.826 < high
    assert retention(single=(3.5, 0.02), student=(3.4, 0.02), teacher=(3.49, 0.02))["retention"] is None


def test_continued_training_starts_at_the_base_and_compares(place: Path, tmp_path: Path):
    base = place / "teachers" / "models" / "member-0"
    text, draw = tmp_path / "domain.jsonl", rng.generator(5, "tests.domain")
    text.write_text("\n".join(json.dumps({"text": " ".join(draw.choice(WORDS, 60))}) for _ in range(90)))
    domain = CorpusConfig(tokenizer=str(base), validation_share=0.15, test_share=0.15, seed=3)
    prepare([str(text)], tmp_path / "domain", domain)
    settings = ContinueConfig(
        fit=small_fit(tmp_path / "domain", evaluation_tokens=256),
        base=str(base),
        replay=str(place / "corpus"),
        replay_share=0.25,
        data=512,
        epochs=2.0,
        members=2,
        plain_data=(512, 1024, 2048),
        plain_lrs=(1e-3, 4e-3),
        grid=Grid(tau=(20.0,), lr=(1e-3, 4e-3), epochs=(1, 2)),
        group=2,
    )
    told: list[dict[str, Any]] = []
    result = continue_training(settings, tmp_path / "run", tell=told.append)
    tried = {data: [r for r in told if r["train_tokens"] == data and r["tau"] != 20.0] for data in settings.plain_data}
    for row in result["plain"]:
        by_rate = {lr: [r for r in tried[row["data"]] if r["lr"] == lr] for lr in settings.plain_lrs}
        best = min(by_rate, key=lambda lr: sum(float(r["tune_loss"]) for r in by_rate[lr]))
        assert row["lr"] == best
    recipe = result["recipe"]
    assert recipe["verdict"] == "certified"
    assert recipe["loss"] == pytest.approx(sum(recipe["seed_losses"]) / 2), "not the loss that chose"
    assert result["base_loss"] > result["recipe"]["loss"]
    assert [row["data"] for row in result["plain"]] == [512, 1024, 2048]
    assert set(result["efficiency"]) == {"law", "single", "ensemble", "soup"}
    members = [place / "teachers" / "models" / f"member-{k}" for k in (0, 1)]
    one, two = (load_language_model(member) for member in members)
    mean = average_weights([one, two])
    assert (mean.embedding.weight * 2 - one.embedding.weight - two.embedding.weight).abs().max() < 1e-6
    strange = replace(domain, tokenizer="", vocab_size=290)
    prepare([str(text)], tmp_path / "other", strange)
    refused = replace(settings, fit=small_fit(tmp_path / "other"))
    with pytest.raises(ConfigError, match="another vocabulary"):
        continue_training(refused, tmp_path / "refused")
