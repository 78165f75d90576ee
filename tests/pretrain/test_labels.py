"""Cached soft labels are the divergence they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from forethought.core.errors import ArtefactError
from forethought.data import open_corpus
from forethought.nn import LanguageModel
from forethought.pretrain.batching import FixedWindows
from forethought.pretrain.labels import averaged_law, write_labels
from tests.pretrain.small import small_corpus, small_fit


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FixedWindows, list[LanguageModel]]:
    place = small_corpus(tmp_path_factory.mktemp("labels"))
    corpus = open_corpus(place)
    shape = small_fit(place).model.transformer(corpus.tokenizer.vocab_size, 64)
    models = [LanguageModel(shape, seed=seed).eval() for seed in (1, 2)]
    for model in models:  # a law that is far from even, or nothing about the tail would show
        with torch.no_grad():
            model.embedding.weight.mul_(20.0)
    return place, FixedWindows(corpus.train, batch_size=4, context=32, seed=0), models


@pytest.mark.parametrize("top", [5, 10_000])
def test_the_cached_divergence_is_that_of_the_completed_law(windows, tmp_path: Path, top: int):
    _, fixed, models = windows
    labels = write_labels(tmp_path / "labels", models, fixed, top=top, temperature=1.5, identity="a")
    chosen = np.array([[0, 3]])
    targets = torch.from_numpy(fixed.targets_WT[chosen[0]]).flatten()[None]
    law = averaged_law(models, fixed.tokens_WT[chosen[0]], 1.5).flatten(0, 1)
    vocab = law.shape[1]
    logits = torch.randn(1, law.shape[0], vocab, generator=torch.Generator().manual_seed(0))
    student = torch.log_softmax(logits[0] / 1.5, -1)
    kept = torch.zeros_like(law).scatter(1, law.topk(min(top, vocab)).indices, 1.0).bool()
    prior = torch.from_numpy(labels.prior_V)[None].expand_as(law)
    outside = torch.where(kept, torch.zeros_like(prior), prior)
    rest = torch.where(kept, law, torch.zeros_like(law)).sum(1, keepdim=True)
    whole = torch.where(kept, law, (1 - rest) * outside / outside.sum(1, keepdim=True).clamp_min(1e-9))
    expected = torch.nn.functional.kl_div(student, whole.clamp_min(1e-12).log(), log_target=True, reduction="batchmean")
    found = labels.divergence(logits, targets, chosen)
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)


def test_labels_of_another_text_or_teacher_are_refused(windows, tmp_path: Path):
    _, fixed, models = windows
    write_labels(tmp_path / "labels", models, fixed, top=4, temperature=1.0, identity="first")
    with pytest.raises(ArtefactError, match=r"holds the labels first, not second; the text or the teachers changed"):
        write_labels(tmp_path / "labels", models, fixed, top=4, temperature=1.0, identity="second")


def test_every_window_comes_once_an_epoch_and_in_another_order_the_next(windows):
    _, fixed, _ = windows
    count = len(fixed.tokens_WT)
    rows = np.concatenate([fixed.windows(step) for step in range(count)])[: 2 * count]
    assert sorted(rows[:count]) == list(range(count))
    assert sorted(rows[count : 2 * count]) == list(range(count))
    assert list(rows[:count]) != list(rows[count:])
