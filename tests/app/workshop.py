"""Small texts and configs, and a way to call the command line as a person does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forethought.app.recipes.pretrain import tiny
from forethought.core.rng import generator
from forethought.pretrain import FitConfig
from forethought.train import OptimiserConfig

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "over", "hill", "to", "red", "house")


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """Standard error on one line, without the frame that wraps long messages."""
        return re.sub(r"[\s│|]+", " ", self.err)

    @property
    def result(self) -> dict[str, Any]:
        """The JSON on the last line of standard output."""
        return json.loads(self.out.splitlines()[-1])


def call(arguments: Sequence[str], cwd: Path | None = None) -> Outcome:
    """Run the installed command in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "forethought", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=cwd,
        env=environment,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def small_text(path: Path, documents: int = 60) -> Path:
    """Write documents of drawn words, no two of which share a run of 13."""
    lines = []
    for number in range(documents):
        words = generator(0, "tests.text", number).choice(WORDS, size=60)
        lines.append(json.dumps({"text": f"Story {number}. " + " ".join(words) + "."}))
    path.write_text("\n".join(lines) + "\n")
    return path


def small_config(corpus: Path) -> FitConfig:
    """Return a config that trains in about a second."""
    recipe = tiny()
    return replace(
        recipe,
        sources=(str(corpus),),
        corpus=replace(recipe.corpus, vocab_size=300, validation_share=0.15, test_share=0.15),
        model=replace(recipe.model, hidden_size=32, num_layers=1, num_heads=2),
        optimiser=OptimiserConfig(lr=4e-3),
        loop=replace(recipe.loop, steps=80, evaluate_every=20, checkpoint_every=10),
        batch_size=4,
        context=32,
    )
