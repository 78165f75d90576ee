"""A guarantee for a network of your own, derived again from its files; and one that must come to nothing.

Usage: python examples/certify.py [OUT] [STEPS]     (STEPS 600 give the digits a bound near 0.42)
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

from forethought.certify import CertifySpec, Prior, Recipe, certify, verify
from forethought.certify.compress import CompressionConfig
from forethought.certify.decoder import CodebookRecipe, SubspaceRecipe
from forethought.core.rng import generator
from forethought.data.images import load_digits


def main(out: Path, steps: int) -> None:
    """Certify a small network on true labels and on shuffled ones, and verify the first from its files."""
    train, test = load_digits()
    recipe = Recipe(
        architecture="given", settings={}, subspace=SubspaceRecipe(dimension=100), codebook=CodebookRecipe(levels=5)
    )
    prior = Prior(recipe=recipe, choices={"codebook.levels": [3, 5, 7, 9]})  # 2 bits, paid whatever is chosen
    training = CompressionConfig(steps=steps, quantise_steps=max(steps // 2, 10), batch_size=128, lr=3e-2)
    spec = CertifySpec(prior=prior, attempt={"codebook.levels": [5]}, training=training)
    shuffled = generator(0, "example.labels").permutation(train.labels)
    for name, labels in (("true", train.labels), ("shuffled", shuffled)):
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        found = certify(model, (train.inputs, labels), spec, test=(test.inputs, test.labels), show=False)
        result = found.certificate.document.result
        print(f"{name} labels: error on the data {result.train_risk:.3f}, on fresh data at most {found.bound:.3f}")
        if name == "true":
            found.save(out, replace=True)
            alone = found.holdout.interval[1] if found.holdout else 1.0
            checked = verify(out, (train.inputs, labels), module=model)
            print(f"derived again from {out}: {checked.bound:.6f}, the same: {checked.bound == found.bound}")
            print(f"what {len(test.labels)} held-out digits certify by themselves: {alone:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/certify"), int((sys.argv[2:] or ["300"])[0]))
