"""A small prepared corpus and configs that train in about a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from forethought.pretrain import FitConfig, ModelShape, prepare
from forethought.pretrain.members import MembersConfig
from tests.app.workshop import small_config, small_text


def small_corpus(place: Path, documents: int = 60) -> Path:
    """Prepare the small corpus at place/corpus and return where it is."""
    text = small_text(place / "text.jsonl", documents)
    prepare([str(text)], place / "corpus", small_config(text).corpus)
    return place / "corpus"


def small_fit(corpus: Path, **changes: Any) -> FitConfig:
    """Return a fit on a prepared corpus."""
    settings = small_config(corpus)
    loop = replace(settings.loop, evaluate_every=0, checkpoint_every=20)
    model = ModelShape(hidden_size=16, num_layers=2, num_heads=2)
    settings = replace(settings, loop=loop, model=model, evaluation_tokens=512, baselines=False, final_tokens=512)
    return replace(settings, **changes)


def small_members(corpus: Path, **changes: Any) -> MembersConfig:
    """Return a batched run of one member on a prepared corpus, two epochs."""
    fit = changes.pop("fit", None) or small_fit(corpus)
    return replace(MembersConfig(fit=fit, epochs=2.0), **changes)
