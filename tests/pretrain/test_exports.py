"""What is exported is the same model to other programs: Hugging Face's and llama.cpp's, at several sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.app.recipes.pretrain import CONTINUE_RECIPES, MEMBERS_RECIPES, PRETRAIN_RECIPES, STUDY_RECIPES
from forethought.data import Tokenizer, load_tokenizer
from forethought.nn import LanguageModel, load_language_model
from forethought.pretrain import ModelShape, fit, prepare
from forethought.pretrain.export import write_gguf
from tests.app.workshop import WORDS, small_config
from tests.pretrain.small import small_fit

SHAPES = {
    "64x1": ModelShape(hidden_size=64, num_layers=1, num_heads=1, tie_embeddings=False),
    "128x2": ModelShape(hidden_size=128, num_layers=2, num_heads=2),
    "qwen3": ModelShape(family="qwen3", hidden_size=128, num_layers=1, num_heads=2, num_kv_heads=1),
}
PROMPT = "The cat's house, it's 18!\n\nred  dog run over hill to"
NEW = 12


@pytest.fixture(scope="module", params=list(SHAPES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `fit` at one size, with heads of 64, trained far enough that the first choice is clear."""
    root = tmp_path_factory.mktemp(str(request.param))
    cycle = [WORDS[(start + k) % len(WORDS)] for start in range(60) for k in range(60)]
    lines = [json.dumps({"text": f"Story {n}: " + " ".join(cycle[60 * n : 60 * n + 60])}) for n in range(60)]
    (root / "text.jsonl").write_text("\n".join(lines) + "\n")
    config = replace(small_config(root / "text.jsonl").corpus, leak_policy="report")
    prepare([str(root / "text.jsonl")], root / "corpus", config)
    settings = small_fit(root / "corpus", model=SHAPES[request.param], max_positions=128)
    fit(replace(settings, loop=replace(settings.loop, steps=80)), root / "run")
    return root / "run"


def greedy(run: Path) -> tuple[Tokenizer, LanguageModel, list[int], list[int]]:
    """Return the tokenizer, the model, the prompt's tokens behind a separator, and the model's own greedy tokens."""
    tokenizer, model = load_tokenizer(run / "model"), load_language_model(run)
    prompt = [tokenizer.end_of_text, *tokenizer.encode(PROMPT)]
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(NEW):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert len(set(tokens[len(prompt) :])) > 5, "text that repeats itself would prove little"
    return tokenizer, model, prompt, tokens[len(prompt) :]


def test_transformers_loads_it_and_generates_the_same_greedy_tokens(trained: Path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer, model, prompt, expected = greedy(trained)
    place = str(trained / "model")
    other: Any = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    theirs = transformers.AutoTokenizer.from_pretrained(place)
    assert theirs(PROMPT, add_special_tokens=False)["input_ids"] == tokenizer.encode(PROMPT)
    with torch.no_grad():
        logits = other(torch.tensor([prompt])).logits[0]
        assert torch.allclose(logits, model(torch.tensor([prompt]))[0], atol=1e-4)
        made = other.generate(torch.tensor([prompt]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    ended = expected.index(tokenizer.end_of_text) if tokenizer.end_of_text in expected else NEW
    assert made[0, len(prompt) :].tolist()[:ended] == expected[:ended]
    assert other.config.head_dim == 64


def test_llama_cpp_loads_it_and_generates_the_same_greedy_tokens(trained: Path, tmp_path: Path):
    pytest.importorskip("gguf", reason="the gguf package is not installed")
    llama = pytest.importorskip("llama_cpp", reason="llama.cpp's Python binding is not installed")
    tokenizer, _, prompt, expected = greedy(trained)
    path = write_gguf(trained, tmp_path / "model.gguf")
    opened = llama.Llama(str(path), n_ctx=128, verbose=False, logits_all=True)
    assert opened.tokenize(PROMPT.encode(), add_bos=True, special=False) == prompt
    made: list[int] = []
    for token in opened.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        made.append(int(token))
        if len(made) == NEW:
            break
    assert made == expected
    assert opened.detokenize(tokenizer.encode(PROMPT)).decode() == PROMPT


def test_presets_have_heads_that_other_programs_kernels_take():
    """vLLM's kernels take heads of 64; the demo's draft (2 heads of 48) is made for this library's own engine."""
    shapes: dict[str, ModelShape] = {name: make().model for name, make in PRETRAIN_RECIPES.items() if name != "draft"}
    for name, make in STUDY_RECIPES.items():
        shapes |= {f"{name} {index}": shape for index, shape in enumerate(make().sizes)}
    shapes |= {name: make().fit.model for name, make in MEMBERS_RECIPES.items()}
    shapes |= {name: make().fit.model for name, make in CONTINUE_RECIPES.items()}
    assert {name: shape.hidden_size // shape.num_heads for name, shape in shapes.items()} == dict.fromkeys(shapes, 64)
