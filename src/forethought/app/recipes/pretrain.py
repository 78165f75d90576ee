"""Recipes of pre-training, from seconds to hours on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from forethought.data import CorpusConfig
from forethought.pretrain import DistillationConfig, FitConfig, ModelShape
from forethought.pretrain.continued import ContinueConfig
from forethought.pretrain.members import FrontierConfig, MembersConfig, seeds
from forethought.pretrain.study import Grid, Point, StudyConfig
from forethought.train import LoopConfig, OptimiserConfig, ScheduleConfig

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


def _ladder_fit() -> FitConfig:
    """Return what all points of the small ladders share: AdamW, windows of 64, batches of 8, an untied head."""
    return FitConfig(
        corpus=CorpusConfig(vocab_size=1024, validation_share=0.1, test_share=0.1),
        model=shape(64, 2),
        optimiser=OptimiserConfig(lr=3e-3, tau=0.5),
        loop=LoopConfig(evaluate_every=0, checkpoint_every=500, log_every=10),
        batch_size=8,
        context=64,
        max_positions=512,
        evaluation_tokens=32_768,
    )


def shape(width: int, layers: int) -> ModelShape:
    """Return a shape with heads of 64, which other programs' kernels take, and a head of its own for the output."""
    return ModelShape(hidden_size=width, num_layers=layers, num_heads=max(1, width // 64), tie_embeddings=False)


def standard() -> StudyConfig:
    """Epochs, rate and size tuned at weight decay 0.1: the baseline that overfits."""
    return StudyConfig(
        fit=_ladder_fit(),
        sizes=(shape(64, 2), shape(64, 4), shape(128, 4), shape(256, 4)),
        data=(32_768, 65_536, 131_072),
        recipes=("standard",),
        grid=Grid(tau=(0.25, 0.5, 1.0, 2.0, 4.0), lr=(1e-3, 3e-3, 1e-2), epochs=(2, 4, 8, 16, 32)),
        standard_start=Point(tau=None, lr=3e-3, epochs=8),
    )


def regularised() -> StudyConfig:
    """The decay tuned too, as the weights' memory tau in epochs: larger models keep getting better."""
    return replace(standard(), recipes=("regularised",), start=Point(tau=0.5, lr=3e-3, epochs=16))


def ensemble() -> StudyConfig:
    """Five members at twice the epochs and twice tau of the best single model, probabilities averaged."""
    return replace(regularised(), recipes=("regularised", "ensemble"), members=5)


def joint() -> StudyConfig:
    """All recipes at every size and budget; the laws then take members, sizes and data to their limits."""
    return replace(ensemble(), recipes=("standard", "regularised", "ensemble"))


def members() -> MembersConfig:
    """Five members that differ by seed, as one batched model: 16 epochs at tau 1."""
    fit = replace(_ladder_fit(), optimiser=OptimiserConfig(lr=3e-3, tau=1.0))
    return MembersConfig(fit=fit, members=seeds(5), epochs=16.0)


def averaged() -> MembersConfig:
    """One model with a constant rate that ends above zero, its EMA and the mean of its last four epochs."""
    base = members()
    loop = replace(base.fit.loop, schedule=ScheduleConfig(floor=0.3), ema_decay=0.99)
    return replace(base, fit=replace(base.fit, loop=loop), members=seeds(1), frontier=FrontierConfig(last_k=4))


def snapshots() -> MembersConfig:
    """One run with four cosine cycles, its decay in anti-phase, and a snapshot at each end: an ensemble for one run."""
    base = members()
    loop = replace(base.fit.loop, schedule=ScheduleConfig(name="constant", warmup=0.0))
    return replace(base, fit=replace(base.fit, loop=loop), members=seeds(1), frontier=FrontierConfig(cycles=4))


def frontier() -> MembersConfig:
    """Dropout and a second token ahead on top of the regularised recipe, three seeds: what does it earn?"""
    return replace(members(), members=seeds(3), frontier=FrontierConfig(dropout=0.1, ahead_share=0.3))


def continued() -> ContinueConfig:
    """A base model on a domain: four passes at tau 20 against plain training on up to eight times the text."""
    return ContinueConfig(fit=replace(_ladder_fit(), batch_size=8, context=128), lr=1e-3, tau=20.0, epochs=4.0)


MEMBERS_RECIPES: dict[str, Callable[[], MembersConfig]] = {
    "averaged": averaged,
    "frontier": frontier,
    "members": members,
    "snapshots": snapshots,
}
STUDY_RECIPES: dict[str, Callable[[], StudyConfig]] = {
    "ensemble": ensemble,
    "joint": joint,
    "regularised": regularised,
    "standard": standard,
}
CONTINUE_RECIPES: dict[str, Callable[[], ContinueConfig]] = {"continue": continued}
