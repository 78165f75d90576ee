"""What the tour makes and how much of it: as `make demo` runs it, and in short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from pydantic import Field

from forethought.app.recipes.pretrain import draft as draft_recipe
from forethought.app.recipes.pretrain import members as members_recipe
from forethought.app.recipes.pretrain import small, tiny
from forethought.core.config import config
from forethought.data import STDLIB
from forethought.pretrain import DistillationConfig, FitConfig, ModelShape
from forethought.pretrain.members import MembersConfig, seeds
from forethought.train import LoopConfig, OptimiserConfig

PROMPTS = (
    "def ",
    "import os\nimport sys\n\n",
    "class Reader:\n    def __init__(self, ",
    "    # Return the ",
    '    """Return a new ',
    "    for name in ",
    "    if not isinstance(",
    "    try:\n        return self.",
)
DELAYS = (0.5, 1.0, 2.0, 4.0)


def scarce_members() -> MembersConfig:
    """Three members on the first 262,144 tokens, read twice: of fewer they learn the files by heart."""
    made = members_recipe()
    fit = replace(
        made.fit,
        model=ModelShape(hidden_size=64, num_layers=2, num_heads=1),
        optimiser=OptimiserConfig(lr=4e-3, tau=1.0),
        loop=replace(made.fit.loop, checkpoint_every=100),
        evaluation_tokens=16_384,
    )
    return replace(made, fit=fit, members=seeds(3), epochs=2.0, train_tokens=262_144)


@config
class CertificateSize:
    """How much is certified; None takes the steps of `certify run text --architecture transformer`."""

    tokens: int = Field(default=3_000_000, ge=1000)
    """Characters of the training documents."""
    steps: int | None = Field(default=2000, ge=1)
    quantise_steps: int | None = Field(default=2000, ge=1)


@config
class WorldSize:
    """How much of the world demo is run; None takes the number of its own recipe."""

    recipe: Literal["full", "quick"] = "full"
    episodes: int | None = None
    steps: int | None = None
    pairs: int | None = None
    far_pairs: int | None = None
    surprise_pairs: int | None = None
    candidates: int | None = Field(default=None, ge=8)
    """Of every plan."""


@config
class ControlSize:
    """How much of control is trained and measured, on the double integrator."""

    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Trainings, each with its own data, models and rides."""
    play_episodes: int = Field(default=150, ge=20)
    """Random play that an agent is trained on, of 40 steps each."""
    training_steps: int = Field(default=600, ge=1)
    nominal_episodes: int = Field(default=60, ge=20)
    """The agent's own rides, on which surprise and the tubes are calibrated."""
    adapt_episodes: int = Field(default=20, ge=2)
    """Play on the changed body, without rewards."""
    adapt_steps: int = Field(default=300, ge=1)
    rides: int = Field(default=20, ge=2)
    """Episodes of each seed behind every figure."""
    delays: tuple[float, ...] = DELAYS
    """Control periods that a plan takes, on a virtual clock."""


@config
class DemoConfig:
    """What the tour trains, measures and shows."""

    target: FitConfig = Field(default_factory=small)
    draft: FitConfig = Field(default_factory=draft_recipe)
    sources: tuple[str, ...] = (STDLIB,)
    max_tokens: int = Field(default=96, ge=1)
    num_speculative_tokens: int = Field(default=4, ge=1)
    num_prompts: int = Field(default=len(PROMPTS), ge=1, le=len(PROMPTS))
    agreement_tokens: int = Field(default=8192, ge=256)
    members: MembersConfig = Field(default_factory=scarce_members)
    """Models on a scarce part of the corpus, whose average teaches the students."""
    students: int = Field(default=2, ge=1)
    certificate: CertificateSize = CertificateSize()
    world: WorldSize = WorldSize()
    control: ControlSize = ControlSize()


def full() -> DemoConfig:
    """Return the tour as `make demo` runs it: under a quarter of an hour on two cores."""
    return DemoConfig()


def quick() -> DemoConfig:
    """Return the tour in a few minutes: everything runs, and the figures mean little."""
    target = tiny()
    smaller = replace(
        target,
        model=ModelShape(hidden_size=32, num_layers=1, num_heads=1),
        distillation=DistillationConfig(share=1.0),
        loop=LoopConfig(steps=500, evaluate_every=100, checkpoint_every=100),
    )
    corpus = replace(target.corpus, max_bytes=2 << 20)
    scarce = scarce_members()
    return DemoConfig(
        target=replace(target, corpus=corpus, loop=replace(target.loop, steps=900)),
        draft=replace(smaller, corpus=corpus),
        max_tokens=48,
        num_prompts=3,
        agreement_tokens=2048,
        members=replace(scarce, epochs=1.0, train_tokens=131_072, fit=replace(scarce.fit, evaluation_tokens=8192)),
        certificate=CertificateSize(tokens=400_000, steps=250, quantise_steps=250),
        world=WorldSize(recipe="quick", episodes=96, steps=300, pairs=10),
        control=ControlSize(seeds=(0,), training_steps=300, nominal_episodes=30, adapt_steps=150, rides=6),
    )


DEMOS: dict[str, Callable[[], DemoConfig]] = {"demo": full, "demo.quick": quick}
