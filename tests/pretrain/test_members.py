"""Members that train as one batched model are the models that separate runs would have made."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forethought.core.errors import ConfigError, DataError, InputError, TrainingError
from forethought.core.run import read_records
from forethought.nn import LanguageModel, TransformerConfig, load_language_model
from forethought.pretrain import fit, prepare
from forethought.pretrain.members import FrontierConfig, Member, StackedModel, seeds, train_members
from forethought.train import OptimiserConfig
from tests.app.workshop import small_config, small_text
from tests.pretrain.small import small_corpus, small_fit, small_members


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def losses(run: Path, name: str) -> np.ndarray[Any, Any]:
    records = [record for record in read_records(run / "metrics.jsonl") if record["event"] == "train"]
    return np.array([record[name] for record in records])


@pytest.mark.parametrize("optimiser", [OptimiserConfig(lr=4e-3), OptimiserConfig(name="muon", lr=4e-3)])
def test_batched_members_equal_separate_fits(corpus: Path, tmp_path: Path, optimiser: OptimiserConfig):
    members = (Member(seed=3, lr=4e-3, tau=0.5), Member(seed=5, lr=2e-3, tau=2.0), Member(seed=6, weight_decay=0.3))
    settings = small_members(corpus, fit=small_fit(corpus, optimiser=optimiser), members=members)
    result = train_members(settings, tmp_path / "batched")
    for k, member in enumerate(members):
        alone = replace(
            settings.fit,
            optimiser=settings.optimiser(member),
            seed=member.seed,
            loop=replace(settings.fit.loop, steps=result["steps"]),
        )
        fit(alone, tmp_path / str(k))
        gap = np.abs(losses(tmp_path / "batched", f"loss_{k}") - losses(tmp_path / str(k), "loss")).max()
        assert gap < 1e-4
    assert np.abs(losses(tmp_path / "batched", "loss_0") - losses(tmp_path / "batched", "loss_1")).max() > 1e-2


@pytest.mark.parametrize(
    "frontier", [FrontierConfig(dropout=0.2), FrontierConfig(ahead_share=0.3), FrontierConfig(cycles=2)]
)
def test_a_member_does_not_depend_on_who_is_batched_with_it(corpus: Path, tmp_path: Path, frontier: FrontierConfig):
    settings = small_members(corpus, members=seeds(3, first=2), frontier=frontier)
    train_members(settings, tmp_path / "three")
    train_members(replace(settings, members=(settings.members[1],)), tmp_path / "one")
    assert np.abs(losses(tmp_path / "three", "loss_1") - losses(tmp_path / "one", "loss_0")).max() < 1e-4


def test_each_member_has_dropout_of_its_own(corpus: Path, tmp_path: Path):
    twins = tuple(Member(seed=seed, init_seed=0, order_seed=0) for seed in (1, 2))
    settings = small_members(corpus, members=twins, frontier=FrontierConfig(dropout=0.2), train_tokens=640)
    train_members(settings, tmp_path / "run")
    assert np.abs(losses(tmp_path / "run", "loss_0") - losses(tmp_path / "run", "loss_1")).max() > 1e-3


@pytest.mark.parametrize("every", [5, 7])
def test_a_killed_run_resumes_to_the_same_bits_with_its_snapshots(corpus: Path, tmp_path: Path, every: int):
    frontier = FrontierConfig(cycles=2, dropout=0.1)
    fit_settings = small_fit(corpus)
    loop = replace(fit_settings.loop, checkpoint_every=every, ema_decay=0.9)
    settings = small_members(
        corpus, fit=replace(fit_settings, loop=loop), members=seeds(2), frontier=frontier, train_tokens=640
    )
    whole = train_members(settings, tmp_path / "whole")
    train_members(settings, tmp_path / "killed")
    # At step 5 the crash may come between the checkpoint and the snapshot, which is then made of the checkpoint.
    for gone in ("result.json", "scores", "models", *(["snapshots"] if every == 5 else [])):
        path = tmp_path / "killed" / gone
        path.unlink() if path.is_file() else shutil.rmtree(path)
    store = tmp_path / "killed" / "checkpoints"
    last = max(store.iterdir())
    shutil.rmtree(last)
    again = train_members(settings, tmp_path / "killed", exists="resume")
    assert again == whole
    assert {m["name"] for m in whole["members"]} == {
        f"{n}-{k}" for n in ("member", "ema", "snapshot-5") for k in (0, 1)
    }
    for name in ("metrics.jsonl", "scores/report.bin", "models/snapshot-5-1/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_mean_of_the_last_epochs_is_exported(corpus: Path, tmp_path: Path):
    settings = small_members(corpus, frontier=FrontierConfig(last_k=2), train_tokens=640)
    train_members(settings, tmp_path / "run")
    last = load_language_model(tmp_path / "run" / "models" / "member-0")
    mean = load_language_model(tmp_path / "run" / "models" / "last-k-0")
    places = sorted((tmp_path / "run" / "snapshots").iterdir())
    assert len(places) == 2
    import safetensors.torch

    kept = [safetensors.torch.load_file(place / "weights.safetensors") for place in places]
    name = "stacked.model/blocks/0/mlp/up/weight"
    expected = (kept[0][name][0] + kept[1][name][0]) / 2
    assert torch.allclose(dict(mean.named_parameters())["blocks.0.mlp.up.weight"], expected)
    assert torch.equal(dict(last.named_parameters())["blocks.0.mlp.up.weight"], kept[1][name][0])


@pytest.mark.parametrize(
    "shape",
    [
        {"family": "qwen2", "qkv_bias": True, "num_kv_heads": 2},
        {"family": "qwen3", "qk_norm": True, "tie_embeddings": False},
    ],
)
def test_a_stacked_model_computes_what_its_members_compute(shape: dict[str, Any]):
    config = TransformerConfig(vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, **shape)
    models = [LanguageModel(config, seed=seed).eval() for seed in range(3)]
    tokens = torch.randint(0, 50, (3, 2, 9), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([model(each) for model, each in zip(models, tokens, strict=True)])
    found, ahead = StackedModel(models).eval()(tokens)
    assert ahead is None
    assert torch.allclose(found.view(expected.shape), expected, atol=1e-5)


def test_init_and_order_can_be_varied_apart():
    init, order = seeds(3, vary="init"), seeds(3, vary="order")
    assert [(m.init_seed, m.order_seed) for m in init] == [(None, 0)] * 3
    assert [(m.init_seed, m.order_seed) for m in order] == [(0, None)] * 3


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(corpus: Path, tmp_path: Path):
    fit_settings = small_fit(corpus)
    loop = replace(fit_settings.loop, clip_norm=None, checkpoint_every=1)
    members = (Member(seed=0), Member(seed=1, lr=1e12, weight_decay=1.0))
    settings = small_members(corpus, fit=replace(fit_settings, loop=loop), members=members)
    with pytest.raises(TrainingError, match=r"at step \d+; lower the learning rate"):
        train_members(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    kept = list((tmp_path / "run" / "checkpoints").iterdir())
    assert kept
    for step in kept:
        import safetensors.torch

        tensors = safetensors.torch.load_file(step / "model.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_a_corpus_smaller_than_a_batch_is_refused(corpus: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"100 training tokens, fewer than one batch of 4 windows of 32 tokens \(128\)"):
        train_members(small_members(corpus, train_tokens=100), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_changed_corpus_is_refused_with_both_hashes(tmp_path: Path):
    place = small_corpus(tmp_path)
    settings = small_members(place, train_tokens=640)
    train_members(settings, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    before = json.loads((place / "corpus.json").read_text())["identity"]
    shutil.rmtree(place)
    text = small_text(tmp_path / "other.jsonl", 70)
    after = prepare([str(text)], place, small_config(text).corpus).identity
    with pytest.raises(ConfigError, match=rf"another corpus \({before[:16]}\).*\({after[:16]}\)"):
        train_members(settings, tmp_path / "run", exists="resume")


def test_validation_text_that_leaks_is_refused(tmp_path: Path):
    text = small_text(tmp_path / "text.jsonl", 40)
    lines = text.read_text().splitlines()
    twins = [json.dumps({"text": json.loads(line)["text"].replace("Story", "Tale")}) for line in lines]
    text.write_text("\n".join([*lines, *twins]) + "\n")
    config = replace(small_config(text).corpus, leak_policy="refuse")
    with pytest.raises(DataError, match="share too many 13-grams with earlier splits"):
        prepare([str(text)], tmp_path / "corpus", config)


def test_settings_that_cannot_go_together_are_named(corpus: Path):
    with pytest.raises(InputError, match="mixture_share"):
        small_members(corpus, mixture="somewhere")
    with pytest.raises(InputError, match="at least one member"):
        small_members(corpus, members=())
    settings = small_fit(corpus)
    stopping = replace(settings, loop=replace(settings.loop, final="best"))
    with pytest.raises(InputError, match="early stopping would stop all members"):
        small_members(corpus, fit=stopping)
