"""The job of text: corpus, target, and the draft that learns the target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from forethought.app.arguments import say
from forethought.app.demo.settings import DemoConfig
from forethought.data import STDLIB, stdlib_facts
from forethought.pretrain import fit, prepare


def make_corpus(settings: DemoConfig, out: Path) -> dict[str, Any]:
    """Prepare the corpus that all jobs of text read, and return where it is."""
    if STDLIB in settings.sources:
        facts = stdlib_facts()
        say(
            f"corpus: the standard library of Python {facts.version}: {facts.num_files:,} files, "
            f"{facts.num_bytes:,} bytes, SHA-256 {facts.sha256[:16]}",
            as_json=True,
        )
    prepare(settings.sources, out / "corpus", settings.target.corpus)
    return {"corpus": "corpus"}


def train_target(settings: DemoConfig, out: Path) -> dict[str, Any]:
    """Train the target on the corpus."""
    own = replace(settings.target, sources=(str(out / "corpus"),))
    return fit(own, out / "target", recipe="demo.target", exists="resume", title="target")


def train_draft(settings: DemoConfig, out: Path) -> dict[str, Any]:
    """Distil the draft from the target."""
    taught = replace(settings.draft, sources=(str(out / "corpus"),), teacher=str(out / "target" / "model"))
    return fit(taught, out / "draft", recipe="demo.draft", exists="resume", title="draft")
