"""`forethought pretrain distil`: a draft made for a target fits it better than chance, and says how well."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from forethought.app.distil import draft_shape, held_out_acceptance
from forethought.decode import open_model
from forethought.nn import LanguageModel, TransformerConfig, num_parameters, save_language_model
from tests.app.workshop import Outcome

Command = Callable[..., Outcome]
FLAGS = ("--recipe", "tiny", "--steps", "60", "--batch-size", "4", "--context", "32", "--no-baselines")


def test_distils_on_the_targets_own_corpus_and_reports_acceptance(command: Command, workshop: Path, tmp_path: Path):
    done = command("pretrain", "distil", "--draft-for", workshop / "target", "--out", tmp_path / "d", "--json", *FLAGS)
    assert done.status == 0, done.err
    result = done.result
    target, draft = open_model(workshop / "target"), open_model(tmp_path / "d")
    assert draft.tokenizer.digest == target.tokenizer.digest
    assert draft.model.config.max_positions == target.model.config.max_positions
    again = held_out_acceptance(target, draft, workshop / "target" / "corpus", 32, 1 << 14)
    assert {name: result[name] for name in again} == again
    # An untaught model of the same shape is the yardstick: what was learned must show.
    untaught = tmp_path / "untaught"
    save_language_model(LanguageModel(draft.model.config, seed=3), untaught, draft.directory)
    chance = held_out_acceptance(target, open_model(untaught), workshop / "target" / "corpus", 32, 1 << 14)
    assert result["held_out_overlap"] > chance["held_out_overlap"] + 0.05
    assert result["held_out_greedy_agreement"] > chance["held_out_greedy_agreement"]


def test_a_bare_model_directory_needs_a_corpus_and_takes_one(command: Command, workshop: Path, tmp_path: Path):
    shutil.copytree(workshop / "target" / "model", tmp_path / "bare")
    flags = ("--draft-for", tmp_path / "bare", "--out", tmp_path / "d", *FLAGS)
    refused = command("pretrain", "distil", *flags)
    assert refused.status == 2
    assert "keeps no corpus of its own" in refused.message
    assert not (tmp_path / "d").exists()
    shares = ("--corpus.validation-share", "0.15", "--corpus.test-share", "0.15")
    made = command("pretrain", "distil", workshop / "text.jsonl", *flags, *shares, "--json")
    assert made.status == 0, made.err
    assert made.result["held_out_tokens"] > 0
    assert open_model(tmp_path / "d").tokenizer.digest == open_model(tmp_path / "bare").tokenizer.digest


@pytest.mark.parametrize(("width", "layers", "vocab"), [(384, 6, 4096), (2048, 16, 32000), (64, 1, 300)])
def test_the_drafts_shape_is_at_most_a_tenth_of_the_target(width: int, layers: int, vocab: int):
    target = TransformerConfig(vocab_size=vocab, hidden_size=width, num_layers=layers, num_heads=width // 64)
    shape = draft_shape(target)
    draft = num_parameters(shape.transformer(vocab, target.max_positions)).total
    smallest = shape.hidden_size == 32
    assert draft <= 0.1 * num_parameters(target).total or smallest
    assert shape.hidden_size % shape.num_heads == 0
    assert (shape.hidden_size // shape.num_heads) % 2 == 0
