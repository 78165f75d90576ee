"""Four small models on the same few tokens: how much better is their average, and how good would very many be?

Usage: python examples/pretrain.py [OUT] [EPOCHS]     (16 passes take about ten seconds)
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from forethought.app.recipes.pretrain import MEMBERS_RECIPES
from forethought.data import STDLIB
from forethought.pretrain import prepare, seeds, train_members
from forethought.pretrain.scores import loss_interval, open_scores, subset_curve
from forethought.stats import fit_power_law

MEMBERS = 4


def main(out: Path, epochs: float) -> None:
    """Train the members as one batched model, score every subset, and fit loss = a / K + asymptote."""
    recipe = MEMBERS_RECIPES["members"]()
    corpus = replace(recipe.fit.corpus, max_bytes=400_000, test_share=0.2)
    if not (out / "corpus").exists():
        prepare([STDLIB], out / "corpus", corpus)
    optimiser = replace(recipe.fit.optimiser, lr=1e-2)
    fit = replace(recipe.fit, sources=(str(out / "corpus"),), optimiser=optimiser, evaluation_tokens=4096)
    settings = replace(recipe, fit=fit, members=seeds(MEMBERS), epochs=epochs, train_tokens=8192, keep_averages="none")
    train_members(settings, out / "members", exists="resume", export=False)
    scores = open_scores(out / "members" / "scores")
    logs_MN = scores.rows("report")
    low, high = loss_interval(logs_MN[0], fit.context)
    print(f"one member: {-logs_MN[0].mean():.4f} nats a token (95 % {low:.4f} to {high:.4f})")
    curve = subset_curve(logs_MN)
    for count, loss in enumerate(curve, start=1):
        print(f"{count} members averaged: {loss:.4f}")
    law = fit_power_law(list(range(1, MEMBERS + 1)), curve, sigma=0.002, exponent=1.0)
    print(f"asymptote {law.asymptote}, identified: {law.identified} {law.reason}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/pretrain"), float((sys.argv[2:] or ["16"])[0]))
