"""The other arm of the members' benchmark: K single models, each with torch's own fused AdamW, one after another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as functional

from forethought.core import rng
from forethought.nn import LanguageModel, TransformerConfig
from forethought.pretrain.members import MembersConfig


def separate_steps(settings: MembersConfig, shape: TransformerConfig, count: int) -> Callable[[], None]:
    """Return a function that takes one step of each of K models: forward, loss, backward, clip, AdamW."""
    fit = settings.fit
    models = [LanguageModel(shape, seed=seed) for seed in range(count)]
    optimisers = [
        torch.optim.AdamW(model.parameters(), lr=fit.optimiser.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        for model in models
    ]
    drawn = rng.generator(0, "benchmark.members").integers(0, shape.vocab_size, (count, fit.batch_size, fit.context))
    tokens, targets = torch.from_numpy(drawn), torch.from_numpy(np.roll(drawn, -1, axis=-1))

    def step() -> None:
        for k, (model, optimiser) in enumerate(zip(models, optimisers, strict=True)):
            loss = functional.cross_entropy(model(tokens[k]).flatten(0, 1), targets[k].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    return step
