"""A tiny random language model in a directory of its own, with a draft beside it, as Hugging Face would hold them."""

from __future__ import annotations

from pathlib import Path

from forethought.core.rng import torch_generator
from forethought.data import Tokenizer
from forethought.nn import LanguageModel, TransformerConfig, save_language_model
from tests.serve.table import TEMPLATE

CONTEXT = 1024


def write_pair(place: Path, tokenizer: Tokenizer) -> tuple[Path, Path]:
    """Write a target and a draft that is the target with some noise, with a chat template."""
    import tokenizers
    import torch

    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=2, num_heads=2, max_positions=CONTEXT
    )
    target = LanguageModel(config, seed=3).eval()
    draft = LanguageModel(config, seed=3).eval()
    random = torch_generator(0, "tests.noise")
    with torch.no_grad():
        target.embedding.weight.mul_(20.0)
        draft.embedding.weight.mul_(20.0)
        for parameter in draft.parameters():
            scale = 0.05 * parameter.std(correction=0)
            parameter.add_(scale * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype))
    inner = tokenizers.Tokenizer.from_str(tokenizer.serialised)
    for name, model in (("target", target), ("draft", draft)):
        save_language_model(model, place / name, inner)
        (place / name / "chat_template.jinja").write_text(TEMPLATE)
    return place / "target", place / "draft"
