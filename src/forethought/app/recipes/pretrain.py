"""Recipes of pre-training, from seconds to hours on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from forethought.data import CorpusConfig
from forethought.pretrain import DistillationConfig, FitConfig, ModelShape
from forethought.train import LoopConfig, OptimiserConfig

# Half a million tokens of the embedded corpus, 2.6 M parameters, batches of 8 windows, one seed: validation loss 4.56
# with these rates, 4.69 with half of them, 5.56 with AdamW at 4e-3 and 5.97 at 8e-3 (docs/diary.md, 2026-11-23).
_MUON = OptimiserConfig(name="muon", lr=8e-3, muon_lr=0.04)


def tiny() -> FitConfig:
    """0.2 M parameters and 300 short steps: under a minute on two cores, to see that everything works."""
    return FitConfig(
        corpus=CorpusConfig(vocab_size=1024),
        model=ModelShape(hidden_size=64, num_layers=2, num_heads=1),
        optimiser=_MUON,
        loop=LoopConfig(steps=300, evaluate_every=100, checkpoint_every=100),
        batch_size=8,
        context=64,
        max_positions=512,
        evaluation_tokens=8192,
    )


def small() -> FitConfig:
    """2.6 M parameters in about four minutes on two cores: the target of the demo."""
    return FitConfig(
        corpus=CorpusConfig(vocab_size=4096),
        model=ModelShape(hidden_size=192, num_layers=4, num_heads=3),
        optimiser=_MUON,
        loop=LoopConfig(steps=600, evaluate_every=100, checkpoint_every=100),
        batch_size=8,
        context=256,
        evaluation_tokens=32_768,
    )


def draft() -> FitConfig:
    """0.6 M parameters that learn a target's soft labels: the draft of the demo; give --teacher."""
    return replace(
        small(),
        model=ModelShape(hidden_size=96, num_layers=2, num_heads=2),
        distillation=DistillationConfig(share=1.0),
        loop=LoopConfig(steps=360, evaluate_every=100, checkpoint_every=100),
    )


def base() -> FitConfig:
    """13.8 M parameters and 49 M tokens: hours on two cores, where 10 M parameters train at 2,200 tokens/s."""
    return FitConfig(
        corpus=CorpusConfig(vocab_size=8192),
        model=ModelShape(hidden_size=384, num_layers=6, num_heads=6),
        optimiser=OptimiserConfig(lr=3e-3),
        loop=LoopConfig(steps=3000, evaluate_every=250, checkpoint_every=250),
        batch_size=32,
        context=512,
        max_positions=2048,
    )


PRETRAIN_RECIPES: dict[str, Callable[[], FitConfig]] = {"base": base, "draft": draft, "small": small, "tiny": tiny}
