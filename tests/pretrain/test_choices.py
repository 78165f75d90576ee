"""Multiple choice and minimal pairs follow the log-likelihood rules, for one model and for several."""

from __future__ import annotations

import gzip
import itertools
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from forethought.core.errors import ArtefactError, DataError, RunExistsError
from forethought.data import open_corpus
from forethought.nn import LanguageModel, save_language_model
from forethought.pretrain.choices import (
    Question,
    choice_accuracy,
    continuation_scores,
    pair_accuracy,
    read_questions,
)
from forethought.pretrain.export import write_gguf
from forethought.pretrain.export.gguf import gguf_name
from tests.app.workshop import WORDS
from tests.pretrain.small import small_corpus, small_fit


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("choices")
    corpus = open_corpus(small_corpus(root))
    shape = small_fit(root / "corpus").model.transformer(corpus.tokenizer.vocab_size, 48)
    models = [LanguageModel(shape, seed=seed).eval() for seed in (0, 1)]
    for model in models:
        with torch.no_grad():
            model.embedding.weight.mul_(20.0)
    return corpus.tokenizer, models


def by_hand(model: LanguageModel, tokens: list[int], count: int) -> list[float]:
    law = model(torch.tensor([tokens[:-1]]))[0].log_softmax(-1)
    return [float(law[at - 1, tokens[at]].detach().exp()) for at in range(len(tokens) - count, len(tokens))]


def test_scores_are_those_of_the_continuation_alone_and_average_probabilities(made):
    tokenizer, models = made
    context, continuation = "The cat sat on", " the red mat"
    whole = [tokenizer.end_of_text, *tokenizer.encode(context + continuation)]
    count = len(whole) - 1 - len(tokenizer.encode(context))
    for chosen in (models[:1], models):
        expected = 0.0
        for parts in zip(*[by_hand(model, whole, count) for model in chosen], strict=True):
            expected += float(torch.tensor(sum(parts) / len(parts)).log())
        pairs = [(context, continuation), ("", "a dog"), (context + " ", continuation.strip())]
        found = continuation_scores(chosen, tokenizer, pairs, batch_size=2)
        assert found[0] == pytest.approx(expected, rel=1e-4)
        assert found[2] == pytest.approx(found[0], rel=1e-4), "the context's last blank belongs to the continuation"


def test_a_text_too_long_loses_its_front(made):
    tokenizer, models = made
    long = "the cat sat on a mat and " * 20
    (found,) = continuation_scores(models[:1], tokenizer, [(long, " saw the dog")], batch_size=1)
    whole = [tokenizer.end_of_text, *tokenizer.encode(long + " saw the dog")]
    count = len(whole) - 1 - len(tokenizer.encode(long.rstrip()))
    kept = by_hand(models[0], whole[-49:], 49 - 1)[-count:]
    assert found == pytest.approx(float(torch.tensor(kept).log().sum()), rel=1e-3)


def test_normalised_accuracy_divides_by_bytes(made):
    tokenizer, models = made
    options = ("mat", "the red house over the hill and the dog")
    sums = continuation_scores(models[:1], tokenizer, [("The cat saw ", f" {o}") for o in options], batch_size=2)
    ratios = [score / len(o.encode()) for score, o in zip(sums, options, strict=True)]
    gold = max(range(2), key=lambda k: sums[k])
    found = choice_accuracy(
        models[:1], tokenizer, [Question(("The cat saw ",) * 2, tuple(f" {o}" for o in options), gold)]
    )
    assert found["accuracy"] == 1.0
    assert found["normalised_accuracy"] == float(max(range(2), key=lambda k: ratios[k]) == gold)
    assert found["guessing"] == 0.5


def test_an_ensemble_answers_by_its_averaged_probabilities(made):
    tokenizer, models = made
    options = [f" {a} {b}" for a in WORDS for b in WORDS]
    scored = [continuation_scores([m], tokenizer, [("The", o) for o in options], batch_size=32) for m in models]
    averaged = continuation_scores(models, tokenizer, [("The", o) for o in options], batch_size=32)
    products = [sum(each) for each in zip(*scored, strict=True)]
    pairs = itertools.combinations(range(len(options)), 2)
    # Two options whose order the mean of the logarithms would turn round.
    first, second = next((a, b) for a, b in pairs if (averaged[a] - averaged[b]) * (products[a] - products[b]) < -1e-3)
    gold = int(averaged[second] > averaged[first])
    question = Question(("The",) * 2, (options[first], options[second]), gold)
    assert choice_accuracy(models, tokenizer, [question])["accuracy"] == 1.0
    both = choice_accuracy(models, tokenizer, [question, replace(question, gold=1 - gold)])
    assert both["accuracy"] == 0.5
    assert both["accuracy_interval"][0] < 0.5 < both["accuracy_interval"][1]


def test_files_are_read_and_bad_lines_are_named(tmp_path: Path):
    lines = [
        {"query": "Question: why?", "choices": ["a", "b"], "gold": 1},
        {"context_options": ["x so x", "x so y"], "continuation": "ran.", "gold": 0},
        {
            "question": "Who?",
            "support": "",
            "correct_answer": "d",
            "distractor1": "a",
            "distractor2": "b",
            "distractor3": "c",
        },
    ]
    path = tmp_path / "q.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps(line) for line in lines).encode()))
    first, second, third = read_questions(path)
    assert first == Question(("Question: why?\nAnswer:",) * 2, (" a", " b"), 1)
    assert second.continuations == (" ran.", " ran.")
    assert third.continuations[third.gold] == " d"
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(lines[0]) + "\n" + json.dumps({"query": "q", "choices": ["a"], "gold": 4}) + "\n")
    with pytest.raises(DataError, match=r"bad\.jsonl line 2"):
        read_questions(bad)


def test_minimal_pairs_prefer_the_likelier_sentence(made, tmp_path: Path):
    tokenizer, models = made
    texts = ["the cat sat", "red red a on", "dog over hill"]
    scores = continuation_scores(models, tokenizer, [("", text) for text in texts], batch_size=4)
    best, worst = texts[scores.index(max(scores))], texts[scores.index(min(scores))]
    archive = tmp_path / "pairs.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        good = json.dumps({"sentence_good": best, "sentence_bad": worst})
        bad = json.dumps({"sentence_good": worst, "sentence_bad": best})
        opened.writestr("data/one.jsonl", good + "\n" + bad + "\n")
        opened.writestr("data/two.jsonl", good + "\n")
    found = pair_accuracy(models, tokenizer, archive)
    assert found["paradigms"] == {"one": 0.5, "two": 1.0}
    assert found["accuracy"] == pytest.approx(2 / 3)
    archive.write_bytes(b"no archive")
    with pytest.raises(DataError, match="no archive of minimal pairs"):
        pair_accuracy(models, tokenizer, archive)


def test_gguf_has_every_tensor_and_llama_cpp_gives_the_same_tokens_and_logits(made, tmp_path: Path):
    gguf = pytest.importorskip("gguf")
    tokenizer, models = made
    (tmp_path / "t").mkdir()
    tokenizer.save(tmp_path / "t")
    save_language_model(models[0], tmp_path / "model", tmp_path / "t")
    path = write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    with pytest.raises(RunExistsError, match="already exists"):
        write_gguf(tmp_path / "model", path)
    names = {tensor.name for tensor in gguf.GGUFReader(path).tensors}
    assert names == {gguf_name(name) for name, _ in models[0].named_parameters()}
    llama = pytest.importorskip("llama_cpp")
    opened = llama.Llama(str(path), logits_all=True, n_ctx=48, verbose=False)
    text = "The cat's house, it's 18!\n\nred  dog"
    tokens = opened.tokenize(text.encode(), add_bos=False, special=False)
    assert tokens == tokenizer.encode(text)
    opened.eval([tokenizer.end_of_text, *tokens])
    own = models[0](torch.tensor([[tokenizer.end_of_text, *tokens]]))[0].detach()
    assert torch.allclose(torch.tensor(opened.scores[: len(tokens) + 1]), own, atol=0.02)
    made_text = opened(text, max_tokens=4, temperature=0.0)["choices"][0]["text"]
    assert isinstance(made_text, str)
    facts = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    facts["normalizer"] = {"type": "NFC"}
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "tokenizer.json").write_text(json.dumps(facts))
    save_language_model(models[0], tmp_path / "other", tmp_path / "odd")
    with pytest.raises(ArtefactError, match="splits text as GPT-2 does"):
        write_gguf(tmp_path / "other", tmp_path / "o.gguf")
