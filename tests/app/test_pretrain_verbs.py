"""The verbs of pre-training, from text to ensembles, students, ladders, laws and reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought.app.continue_ import continue_verb
from forethought.app.distil import distil_verb
from forethought.app.efficiency import efficiency_verb
from forethought.app.ensemble import ensemble_verb
from forethought.app.ladder import ladder_verb, shape_of
from forethought.app.pretrain_tools import evaluate_verb, export_verb
from forethought.app.report import write_report
from forethought.core.errors import ConfigError, RunExistsError
from tests.pretrain.small import small_corpus

SMALL = "--fit.batch-size 4 --fit.context 32 --fit.max-positions 64 --fit.evaluation-tokens 256".split()
SHAPE = "--fit.model.hidden-size 16 --fit.model.num-layers 1 --fit.model.num-heads 1".split()
GRID = "--grid.tau 0.5 1 --grid.lr 3e-3 --grid.epochs 1 2 --start.epochs 2 --standard-start.epochs 2".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verbs")
    corpus = str(small_corpus(root))
    given = [corpus, "--out", str(root / "run"), "--count", "2", "--epochs", "1", "--train-tokens", "1024"]
    ensemble_verb([*given, *SMALL, *SHAPE])
    return root


def test_an_ensemble_is_scored_again_from_its_run(place: Path, capsys: pytest.CaptureFixture[str]):
    whole = ensemble_verb(["--of", str(place / "run")])
    assert set(whole["candidates"]) == {"run/member-0", "run/member-1"}
    assert whole["ensemble_loss"] < whole["mean_single_loss"]
    one = ensemble_verb(["--of", str(place / "run"), "--only", "run/member-1"])
    assert one["ensemble_loss"] == pytest.approx(whole["candidates"]["run/member-1"])
    assert one["logit_loss"] == pytest.approx(one["ensemble_loss"], rel=1e-5)
    assert "probabilities" in capsys.readouterr().out
    card = (place / "run" / "README.md").read_text()
    assert "seed 1, wd" in card
    assert "all 2 averaged" in card
    assert "Candidates" in write_report(place / "run").read_text()
    with pytest.raises(ConfigError, match="give CORPUS and --out"):
        ensemble_verb([])
    with pytest.raises(ConfigError, match="no finished run of members"):
        ensemble_verb(["--of", str(place / "corpus")])


@pytest.mark.parametrize("mode", ["soft", "self", "sequence", "chain"])
def test_members_are_distilled_in_every_mode(place: Path, tmp_path: Path, mode: str):
    given = ["--from-run", str(place / "run"), "--out", str(tmp_path / "s"), "--mode", mode, "--epochs", "1"]
    more = ["--students", "2", "--tokens", "600", "--share", "0.5", "--length", "2"]
    result = distil_verb([*given, *more])
    assert result["mode"] == mode
    assert len(result["student_losses"]) == (1 if mode == "chain" else 2)
    assert result["reason"] or result["interval"][0] <= result["retention"] <= result["interval"][1]
    with pytest.raises(RunExistsError, match="already exists"):
        distil_verb([*given, *more])


def test_ladders_are_joined_into_laws(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = [str(place / "corpus"), "--sizes", "8x1", "16x1", "--data", "1024", "--members", "2", *GRID, *SMALL]
    for recipe in ("standard", "ensemble"):
        ladder_verb([*base, "--recipe", recipe, "--out", str(tmp_path / recipe)])
    assert "certified" in capsys.readouterr().out
    joined = efficiency_verb([str(tmp_path / "standard"), str(tmp_path / "ensemble")])
    assert joined["rows"] == 6
    assert set(joined["laws"]["over_size"]["1024"]) == {"standard", "regularised", "ensemble"}
    page = write_report(tmp_path / "ensemble").read_text()
    for words in ("Over size", "Over members", "Tuned points", "Data efficiency", "not fitted"):
        assert words in page
    with pytest.raises(ConfigError, match="no finished ladder"):
        efficiency_verb([str(place / "run")])
    with pytest.raises(ConfigError, match="size '8' is no shape"):
        shape_of("8")
    with pytest.raises(ConfigError, match="budget 'soon' is no time"):
        ladder_verb([*base, "--out", str(tmp_path / "never"), "--budget", "soon"])


def test_a_model_is_continued_evaluated_and_exported(place: Path, tmp_path: Path):
    base = place / "run" / "models" / "member-0"
    arms = "--data 512 --epochs 2 --members 2 --plain-data 512 1024 1536".split()
    result = continue_verb(
        [str(place / "text.jsonl"), "--out", str(tmp_path / "c"), "--base", str(base), *arms, *SMALL]
    )
    assert result["recipe"]["loss"] < result["base_loss"]
    assert "What the recipe is worth" in write_report(tmp_path / "c").read_text()
    with pytest.raises(ConfigError, match="starts from a model"):
        continue_verb([str(place / "text.jsonl"), "--out", str(tmp_path / "none")])
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"query": "the cat", "choices": ["sat", "hill"], "gold": 0}\n')
    models = [str(place / "run" / "models" / f"member-{k}") for k in (0, 1)]
    found = evaluate_verb([*models, "--questions", str(questions)])
    assert found["results"]["q"]["questions"] == 1
    pytest.importorskip("gguf")
    assert export_verb([models[0], "--gguf", str(tmp_path / "m.gguf")])["bytes"] > 1000
