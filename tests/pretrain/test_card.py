"""Every model carries its card, and a certificate only where it vouches for the very weights beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forethought.app.certify.attach import attach_verb, decoded_network
from forethought.certify import DeltaLedger, Prior, Recipe, Tokens, issue, read_certificate
from forethought.certify.certificate import message_of
from forethought.certify.codes import Segment
from forethought.certify.codes.codebook import GridCodebook
from forethought.certify.decoder import BaseRecipe, CodebookRecipe, SubspaceRecipe, TokenScoring
from forethought.certify.decoder.rebuild import plan_of
from forethought.core import files
from forethought.core.errors import ArtefactError, ConfigError, RunExistsError, StorageError
from forethought.core.faults import faults
from forethought.core.rng import generator
from forethought.data import open_corpus
from forethought.nn import LanguageModel, load_language_model, save_language_model
from forethought.pretrain import fit, soft_distil
from forethought.pretrain.export import attach_certificate, model_card, weights_sha256
from forethought.pretrain.export.slot import Vouched, filled
from forethought.pretrain.members import seeds, train_members
from forethought.pretrain.scores import loss_interval, open_scores
from tests.pretrain.small import small_corpus, small_fit, small_members

VOCAB = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("card"))


def made_certificate(place: Path, seed: int) -> Path:
    """Issue a real certificate of a drawn transformer: its bound is vacuous, and its message decodes."""
    recipe = Recipe(
        architecture="transformer",
        settings={"vocab_size": VOCAB, "hidden_size": 8, "num_layers": 1, "num_heads": 1, "max_positions": 8},
        scoring=TokenScoring(vocab_size=VOCAB, context=4, precision="float32"),
        base=BaseRecipe(kind="zeros"),
        subspace=SubspaceRecipe(kind="identity"),
        codebook=CodebookRecipe(kind="grid", levels=5),
    )
    draw = generator(seed, "tests.certificate")
    counts = plan_of(recipe).segments
    book = GridCodebook(5, 0.125)
    message = message_of(recipe, [Segment(draw.integers(0, 5, count), book) for count in counts])
    data = Tokens(generator(0, "tests.tokens").integers(0, VOCAB, 60))
    ledger = DeltaLedger(data.sha256, 0.05)
    return issue(Prior(recipe, {}), recipe, message, data, ledger=ledger, delta=0.05).save(place)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two certificates, and the model that the first one's message decodes to."""
    root = tmp_path_factory.mktemp("certified")
    for seed in (1, 2):
        made_certificate(root / f"cert-{seed}", seed)
    decoded = decoded_network(read_certificate(root / "cert-1")).module
    assert isinstance(decoded, LanguageModel)
    save_language_model(decoded, root / "model")
    return root


def test_a_fit_writes_its_card_into_the_model(corpus: Path, tmp_path: Path):
    settings = small_fit(corpus)
    settings = replace(settings, loop=replace(settings.loop, steps=8), seed=7)
    result = fit(settings, tmp_path / "run", recipe="test")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    low, high = result["test_loss_interval"]
    assert f"| test | {result['test_loss']:.4f} nats a token ({low:.4f} to {high:.4f})" in card
    for part in ("# run", "## Data", "| seeds | 7 |", "| recipe | `test` |", "## Leak check", "0 of", "None. A certi"):
        assert part in card, part
    assert f"| weight decay | {result['weight_decay']:.4g} |" in card
    assert str(tmp_path) not in card
    files.verify(tmp_path / "run" / "model")


def test_members_and_students_carry_their_own_losses_and_intervals(corpus: Path, tmp_path: Path):
    settings = small_members(corpus, members=seeds(2, first=3), train_tokens=1024)
    result = train_members(settings, tmp_path / "run", recipe="pretrain.members")
    rows = open_scores(tmp_path / "run" / "scores").rows("report")
    for k in (0, 1):
        card = (tmp_path / "run" / "models" / f"member-{k}" / "README.md").read_text()
        low, high = loss_interval(rows[k], settings.fit.context)
        expected = f"{result['members'][k]['report_loss']:.4f} nats a token ({low:.4f} to {high:.4f})"
        assert f"| reported slice | {expected}" in card
        assert f"| seeds | {3 + k} |" in card
        assert "1,024 training tokens in all, 2 passes" in card
    soft_distil(small_members(corpus, train_tokens=1024), [tmp_path / "run" / "models" / "member-0"], tmp_path / "s")
    student = (tmp_path / "s" / "models" / "member-0" / "README.md").read_text()
    assert "| teacher | cached laws `labels-" in student
    grown = small_members(corpus, train_tokens=1024, base=str(tmp_path / "run" / "models" / "member-1"))
    train_members(grown, tmp_path / "grown", recipe="pretrain.continue")
    sha256 = files.sha256_file(tmp_path / "run" / "models" / "member-1" / "model.safetensors")
    continued = (tmp_path / "grown" / "models" / "member-0" / "README.md").read_text()
    assert f"| base | `member-1` (weights SHA-256 {sha256[:16]}) |" in continued


def test_an_interval_is_that_of_whole_windows():
    logs = -np.array([1.0, 3.0, 2.0, 4.0, 6.0, 8.0, 100.0], dtype=np.float32)
    low, high = loss_interval(logs, 2)
    assert (low + high) / 2 == pytest.approx(4.0)
    assert (high - low) / 2 == pytest.approx(4.3027 * np.std([2.0, 3.0, 7.0], ddof=1) / 3**0.5, rel=1e-4)
    assert loss_interval(logs, 5) == (-np.inf, np.inf)


def test_a_card_without_figures_says_what_it_does_not_know():
    result: dict[str, Any] = {"parameters": 1000, "parameters_non_embedding": 400, "epochs": 2.0}
    card = model_card(result, name="plain", recipe="none")
    assert "Not checked." in card
    leaks = {"leaked": {"test": 2}, "checked": {"test": 9}, "policy": "report", "threshold": 0.1, "ngram": 13}
    assert "2 of 9 in test; these were left in" in model_card(
        {**result, "corpus": {"leaks": leaks}}, name="x", recipe="y"
    )


def test_a_certificate_is_attached_to_the_weights_it_decodes_to(certified: Path, tmp_path: Path):
    model = tmp_path / "model"
    result = attach_verb([str(certified / "cert-1"), "--model", str(model), "--make"])
    card = (model / "README.md").read_text()
    own = weights_sha256(dict(load_language_model(model).named_parameters()))
    assert result["weights_sha256"] == own
    for part in (own, "(VACUOUS), failure probability 0.05", f"Bound: {result['bound']:.6g}", "in another precision"):
        assert part in card, part
    for name in ("certificate.json", "message.bin"):
        assert (model / "certificate" / name).read_bytes() == (certified / "cert-1" / name).read_bytes()
        assert files.sha256_file(model / "certificate" / name) in card
    files.verify(model)
    before = card
    attach_verb([str(certified / "cert-1"), "--model", str(model)])
    assert (model / "README.md").read_text() == before, "attaching twice changes nothing"


def test_a_certificate_of_other_weights_is_refused_by_name(certified: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"cert-2 is of other weights \([0-9a-f]{16}\) than .*model holds"):
        attach_verb([str(certified / "cert-2"), "--model", str(certified / "model")])
    assert not (certified / "model" / "certificate").exists()
    moved = load_language_model(certified / "model")
    with torch.no_grad():
        next(moved.parameters())[0, 0] += 1e-6
    save_language_model(moved, tmp_path / "moved")
    with pytest.raises(ConfigError, match="other weights"):
        attach_verb([str(certified / "cert-1"), "--model", str(tmp_path / "moved")])
    with pytest.raises(RunExistsError, match="give --make another name"):
        attach_verb([str(certified / "cert-1"), "--model", str(certified / "model"), "--make"])


def vouching_for(model: Path) -> Vouched:
    parameters = dict(load_language_model(model, dtype=torch.float32).named_parameters())
    return Vouched(1.5, 0.05, "Said.", weights_sha256(parameters))


def test_another_certificate_takes_the_place_only_when_told(certified: Path, tmp_path: Path):
    save_language_model(load_language_model(certified / "model"), tmp_path / "model")
    vouched = vouching_for(tmp_path / "model")
    attach_certificate(tmp_path / "model", certified / "cert-1", vouched)
    with pytest.raises(RunExistsError, match="another certificate"):
        attach_certificate(tmp_path / "model", certified / "cert-2" / "certificate.json", vouched)
    place = attach_certificate(tmp_path / "model", certified / "cert-2", vouched, replace=True)
    assert (place / "message.bin").read_bytes() == (certified / "cert-2" / "message.bin").read_bytes()
    assert (tmp_path / "model" / "README.md").read_text().count("<!-- certificate -->") == 1
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "certificate.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"message\.bin is missing"):
        attach_certificate(tmp_path / "model", tmp_path / "half", vouched)


def test_a_failure_while_attaching_leaves_the_model_as_it_was(certified: Path, tmp_path: Path):
    save_language_model(load_language_model(certified / "model"), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    vouched = vouching_for(tmp_path / "model")

    def full(point: str) -> None:
        if point == "publish.before_manifest":
            raise OSError(28, "No space left on device")

    with faults(full), pytest.raises(StorageError, match="No space left"):
        attach_certificate(tmp_path / "model", certified / "cert-1", vouched)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_card_without_a_slot_gets_one_and_keeps_its_text():
    once = filled("# Mine\n\nSome words.\n", "first")
    assert once.startswith("# Mine\n\nSome words.\n")
    twice = filled(once, "second")
    assert "first" not in twice
    assert twice == filled("# Mine\n\nSome words.\n", "second")


def test_a_window_model_has_no_directory_to_vouch_for(tmp_path: Path):
    recipe = Recipe(
        architecture="window",
        settings={"vocab_size": VOCAB, "context": 2, "embedding": 2, "hidden": 2},
        scoring=TokenScoring(vocab_size=VOCAB, context=2, precision="float32"),
        base=BaseRecipe(kind="zeros"),
        subspace=SubspaceRecipe(kind="identity"),
        codebook=CodebookRecipe(kind="grid", levels=5),
    )
    segments = [Segment(np.zeros(n, dtype=np.int64), GridCodebook(5, 0.125)) for n in plan_of(recipe).segments]
    data = Tokens(generator(0, "tests.tokens").integers(0, VOCAB, 60))
    ledger = DeltaLedger(data.sha256, 0.05)
    issue(Prior(recipe, {}), recipe, message_of(recipe, segments), data, ledger=ledger, delta=0.05).save(tmp_path / "c")
    with pytest.raises(ConfigError, match="network of the kind 'window'"):
        attach_verb([str(tmp_path / "c"), "--model", str(tmp_path)])


def test_the_corpus_of_a_card_is_named_by_its_hash(corpus: Path, tmp_path: Path):
    report = open_corpus(corpus).report
    card = model_card(
        {"parameters": 1, "parameters_non_embedding": 1, "epochs": 1.0, "corpus": report}, name="x", recipe="y"
    )
    assert report["sources"]["sha256"] in card
    assert report["tokenizer_sha256"] in card
    assert json.dumps(report["splits"]["test"]["tokens"]) in card.replace(",", "")
