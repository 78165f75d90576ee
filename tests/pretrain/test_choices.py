"""Multiple choice and minimal pairs follow the log-likelihood rules, for one model and for several."""

from __future__ import annotations

import gzip
import json
import zipfile
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
from forethought.pretrain.export import model_card, write_gguf
from forethought.pretrain.export.gguf import gguf_name
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
    ratios = [score / len(f" {o}".encode()) for score, o in zip(sums, options, strict=True)]
    gold = max(range(2), key=lambda k: sums[k])
    found = choice_accuracy(
        models[:1], tokenizer, [Question(("The cat saw ",) * 2, tuple(f" {o}" for o in options), gold)]
    )
    assert found["accuracy"] == 1.0
    assert found["normalised_accuracy"] == float(max(range(2), key=lambda k: ratios[k]) == gold)
    assert found["guessing"] == 0.5


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


def test_a_card_tells_figures_leaks_and_the_certificate(tmp_path: Path):
    result = {
        "parameters": 1000,
        "parameters_non_embedding": 400,
        "epochs": 2.0,
        "train_tokens": 640,
        "corpus": {"documents": 3, "leaks": {"policy": "drop", "leaked": {"test": 0}}},
        "members": [
            {
                "name": "member-0",
                "tune_loss": 2.0,
                "report_loss": 2.5,
                "report_bits_per_byte": 1.2,
                "seed": 4,
                "weight_decay": 0.3,
            }
        ],
    }
    assert "seed 4, wd 0.3" in model_card(result, name="run", recipe="members")
    proof = tmp_path / "certificate.json"
    proof.write_text("{}")
    assert "`certificate.json` (SHA-256 44136fa3" in model_card(result, name="run", recipe="members", certificate=proof)
