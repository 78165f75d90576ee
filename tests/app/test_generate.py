"""`forethought generate` on fitted models and on a foreign one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import forethought
from forethought.app.generate import Method, continue_prompt, open_engine
from forethought.decode import SamplingParams
from forethought.nn import LanguageModel
from tests.app.workshop import Outcome, call

Command = Callable[..., Outcome]


def test_json_result_and_text_go_to_different_streams(workshop: Path):
    done = call(["generate", str(workshop / "target"), "Story 1. the", "--max-tokens", "12", "--json"])
    assert done.status == 0, done.err
    result = done.result
    assert len(done.out.splitlines()) == 1
    assert result["prompt"] + result["text"] in done.err
    assert len(result["token_ids"]) <= 12
    assert result["method"] == "none"


def test_same_seed_same_text_and_another_seed_another(workshop: Path):
    def sample(seed: int) -> str:
        params = SamplingParams(max_tokens=24, temperature=1.0, seed=seed, ignore_eos=True)
        return continue_prompt(llm, "the", params)[0].text

    with open_engine(workshop / "target", method="none") as llm:
        assert sample(5) == sample(5)
        assert len({sample(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("method", ["draft", "ssd", "ngram"])
def test_greedy_speculation_gives_the_plain_text(command: Command, workshop: Path, method: str):
    arguments = ["generate", workshop / "target", "Story 2.", "--temperature", "0", "--max-tokens", "30", "--json"]
    plain = command(*arguments).result
    fast = command(*arguments, "--method", method, "--draft", workshop / "draft").result
    assert fast["token_ids"] == plain["token_ids"]
    assert fast["method"] == method
    assert fast["statistics"]["drafted"] > 0
    assert fast["statistics"]["target_forwards"] < plain["statistics"]["target_forwards"]


def test_stop_strings_end_the_text(workshop: Path):
    with open_engine(workshop / "target", method="ngram") as llm:
        free, _ = continue_prompt(llm, "the", SamplingParams(max_tokens=40, temperature=0.0))
        word = free.text.split()[1]
        stopped, _ = continue_prompt(llm, "the", SamplingParams(max_tokens=40, temperature=0.0, stop=(word,)))
    assert word not in stopped.text
    assert stopped.finish_reason == "stop"
    assert free.text.startswith(stopped.text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "ssd"], "--draft DIR"),
        (["--temperature", "-1"], "temperature"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--method", "magic"], "magic"),
    ],
)
def test_bad_flags_are_one_clear_error(command: Command, workshop: Path, arguments: list[str], words: str):
    done = command("generate", workshop / "target", "the", *arguments)
    assert done.status == 2
    assert words in done.err
    assert "Traceback" not in done.err


def test_a_corpus_is_not_a_model(command: Command, workshop: Path):
    done = command("generate", workshop / "target" / "corpus", "the")
    assert done.status == 2
    assert "is a corpus, not a language model" in done.err


def test_load_opens_a_run_as_its_model_and_a_corpus_as_a_corpus(workshop: Path):
    assert isinstance(forethought.load(workshop / "target"), LanguageModel)
    assert forethought.load(workshop / "target" / "corpus").train.num_tokens > 0


def test_a_foreign_llama_tells_its_story(shared_data: Path):
    with open_engine(shared_data / "models" / "stories260K", method="none") as llm:
        completion, _ = continue_prompt(llm, "Once upon a time", SamplingParams(max_tokens=40, temperature=0.0))
    assert "there was a little" in completion.text


@pytest.mark.parametrize("method", ["draft", "ssd"])
def test_the_real_pair_decodes_the_same_with_its_draft(shared_data: Path, method: Method):
    target, draft = (shared_data / "models" / "pair" / name for name in ("target", "draft"))
    params = SamplingParams(max_tokens=48, temperature=0.0)
    with open_engine(target, method="none") as llm:
        plain, _ = continue_prompt(llm, "def read(self, ", params)
    with open_engine(target, method=method, draft=draft, num_speculative_tokens=5) as llm:
        fast, _ = continue_prompt(llm, "def read(self, ", params)
    assert fast.token_ids == plain.token_ids
    assert (fast.statistics.tokens_per_target_forward or 0.0) > 1.5
    assert (fast.statistics.hits > 0) == (method == "ssd")
