"""Ensembles are scored from cached probabilities as if their laws had been averaged."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from forethought.core import rng
from forethought.core.errors import CheckpointError, ConfigError
from forethought.data import evaluation_batches, open_corpus
from forethought.nn import LanguageModel
from forethought.pretrain.scores import (
    Scores,
    average_loss,
    joined,
    learned_weights,
    logit_average_loss,
    open_scores,
    subset_curve,
    token_log_probabilities,
    write_scores,
)
from forethought.pretrain.slices import held_out_slices
from tests.pretrain.small import small_corpus, small_fit


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("scores"))


def drawn(members: int, tokens: int = 4000) -> np.ndarray:
    draw = rng.generator(0, "tests.scores")
    return np.log(draw.uniform(0.02, 0.9, (members, tokens))).astype(np.float32)


def test_averages_are_those_of_whole_laws(place: Path):
    corpus = open_corpus(place)
    shape = small_fit(place).model.transformer(corpus.tokenizer.vocab_size, 64)
    models = [LanguageModel(shape, seed=seed).eval() for seed in range(3)]
    for model in models:
        with torch.no_grad():
            model.embedding.weight.mul_(20.0)
    sums, count = {"p": 0.0, "l": 0.0}, 0
    for batch in evaluation_batches(corpus.test, 4, 32):
        raw = torch.stack([model(torch.from_numpy(batch.tokens_BT)) for model in models]).detach()
        for law, name in ((raw.softmax(-1).mean(0).log(), "p"), (raw.mean(0).log_softmax(-1), "l")):
            flat = torch.nn.functional.nll_loss(
                law.flatten(0, 1), torch.from_numpy(batch.targets_BT).flatten(), ignore_index=-100, reduction="sum"
            )
            sums[name] += float(flat)
        count += int((batch.targets_BT != -100).sum())
    rows = np.stack([token_log_probabilities(model, corpus.test, batch_size=4, context=32) for model in models])
    assert rows.shape[1] == count == corpus.test.num_tokens
    assert average_loss(rows) == pytest.approx(sums["p"] / count, rel=1e-5)
    assert logit_average_loss(models, corpus.test, batch_size=4, context=32) == pytest.approx(
        sums["l"] / count, rel=1e-5
    )
    assert abs(sums["p"] - sums["l"]) / count > 1e-3


def test_a_curve_averages_over_all_subsets_and_never_rises():
    rows = drawn(4)
    curve = subset_curve(rows)
    for size in range(1, 5):
        expected = np.mean([average_loss(rows[list(s)]) for s in itertools.combinations(range(4), size)])
        assert curve[size - 1] == pytest.approx(expected)
    assert curve == sorted(curve, reverse=True)


def test_learned_weights_are_the_best_on_their_slice():
    rows = drawn(3)
    rows[1] -= 1.5
    weights = learned_weights(rows)
    best = average_loss(rows, weights)
    assert sum(weights) == pytest.approx(1.0)
    assert weights[1] < 0.05
    for step in itertools.product((-0.05, 0.0, 0.05), repeat=3):
        moved = np.clip(np.array(weights) + step, 0, None)
        assert best <= average_loss(rows, moved / moved.sum()) + 1e-6


def test_scores_come_back_and_damage_is_found(tmp_path: Path):
    scores = Scores(("a", "b"), "text", {"report": drawn(2), "tune": drawn(2, 7)})
    write_scores(tmp_path / "scores", scores)
    back = open_scores(tmp_path / "scores")
    assert np.array_equal(back.rows("report", ["b"])[0], scores.slices["report"][1])
    with pytest.raises(ConfigError, match="no candidate 'c'; there are a, b"):
        back.rows("report", ["c"])
    data = bytearray((tmp_path / "scores" / "report.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "scores" / "report.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"report\.bin"):
        open_scores(tmp_path / "scores")


def test_scores_on_different_text_are_not_joined():
    one, two = (Scores(("m",), text, {"report": drawn(1)}) for text in ("first", "second"))
    with pytest.raises(ConfigError, match="scored on 2"):
        joined({"x": one, "y": two})
    assert joined({"x": one, "y": one}).names == ("x/m", "y/m")


def test_slices_are_disjoint_and_cover_what_they_say(place: Path):
    corpus = open_corpus(place)
    slices = held_out_slices(corpus, 300)
    half = min(300, corpus.validation.num_tokens // 2)
    whole = np.asarray(corpus.validation.tokens)
    assert np.array_equal(slices["tune"].tokens, whole[:half])
    assert np.array_equal(slices["weights"].tokens, whole[half : 2 * half])
    assert np.array_equal(slices["report"].tokens, np.asarray(corpus.test.tokens)[:300])
    assert slices["weights"].document_starts[0] == 0
