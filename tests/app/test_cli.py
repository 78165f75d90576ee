"""The command line keeps its promises: verbs, exit statuses, one line of JSON, no torch before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from forethought.app.cli import BAD_INPUT, DONE, VERBS, main, overview, split_verb
from tests.app.workshop import Outcome, small_text

Command = Callable[..., Outcome]
TINY = ("--recipe", "tiny", "--steps", "4", "--context", "32", "--batch-size", "2", "--corpus.vocab-size", "300")


def test_help_lists_every_verb_and_imports_no_torch():
    probe = "import sys; from forethought.app.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert verb in done.stdout


def test_version_and_empty_call(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == DONE
    assert capsys.readouterr().out.startswith("forethought 0.")
    assert main([]) == DONE
    assert capsys.readouterr().out == overview()


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_shows_help(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code in (0, None)
    assert "--json" in capsys.readouterr().out


def test_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["generat"]) == BAD_INPUT
    error = capsys.readouterr().err
    assert "unknown verb 'generat'" in error
    assert "Did you mean 'generate'?" in error


def test_a_group_of_verbs_lists_its_own(capsys: pytest.CaptureFixture[str]):
    assert split_verb(["pretrain", "fit", "x"]) == ("pretrain fit", ["x"])
    assert main(["pretrain", "--help"]) == DONE
    assert "pretrain fit" in capsys.readouterr().out
    assert main(["pretrain", "fti"]) == BAD_INPUT


def test_fit_prints_one_line_of_json_last_and_only_that(command: Command, tmp_path: Path):
    corpus = small_text(tmp_path / "text.jsonl")
    done = command("pretrain", "fit", corpus, "--out", "run", *TINY, "--seed", "3", "--json")
    assert done.status == 0, done.err
    assert len(done.out.splitlines()) == 1
    assert done.result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert done.result["seed"] == 3
    assert done.result["steps"] == 4
    assert "validation" in done.err
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["recipe"] == "pretrain.tiny"
    assert recorded["difference"]["loop.steps"] == {"recipe": 300, "given": 4}


def test_existing_run_is_refused_resumed_or_replaced(command: Command, tmp_path: Path):
    corpus = small_text(tmp_path / "text.jsonl")
    fit = ("pretrain", "fit", corpus, "--out", "run", *TINY, "--no-baselines")
    assert command(*fit).status == 0
    refused = command(*fit)
    assert refused.status == BAD_INPUT
    assert "--exists resume" in refused.err
    resumed = command(*fit, "--exists", "resume", "--json")
    assert resumed.status == 0
    assert resumed.result["steps"] == 4
    changed = command(*fit, "--exists", "resume", "--optimiser.lr", "0.001")
    assert changed.status == BAD_INPUT
    assert "optimiser.lr" in changed.err
    assert command(*fit, "--exists", "replace", "--optimiser.lr", "0.001").status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing.txt",), ("missing.txt", "does not exist")),
        ((), ("no corpus was given",)),
        (("text.jsonl", "--recipe", "tinny"), ("unknown recipe 'tinny'", "Did you mean 'tiny'?")),
        (("text.jsonl", "--corpus.reading.text-field", "body"), ("text.jsonl", "line 1", "body")),
        (("text.jsonl", "--optimiser.name", "adam"), ("optimiser", "adam", "adamw")),
        (("text.jsonl", "--loop.steps", "0"), ("greater than or equal to 1", "given 0")),
        (("text.jsonl", "--parallel", "ddp"), ("torchrun",)),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_no_run(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
):
    small_text(tmp_path / "text.jsonl")
    done = command("pretrain", "fit", *arguments, "--out", "run")
    assert done.status == BAD_INPUT, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.message
    assert not (tmp_path / "run").exists()


def test_recipes_lists_shows_and_compares(command: Command):
    listed = command("recipes", "--json")
    assert set(listed.result) >= {"pretrain.tiny", "pretrain.small", "pretrain.draft", "pretrain.base"}
    assert command("recipes", "pretrain.tiny", "--json").result["loop"]["steps"] == 300
    changes = command("recipes", "pretrain.tiny", "--against", "pretrain.small", "--json").result
    assert changes["loop.steps"] == {"recipe": 600, "given": 300}
    unknown = command("recipes", "pretrain.tine")
    assert unknown.status == BAD_INPUT
    assert "pretrain.tiny" in unknown.err


def test_a_reader_that_goes_away_ends_the_program_quietly(tmp_path: Path):
    line = f"{sys.executable} -m forethought recipes pretrain.base | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "Traceback" not in done.stderr
