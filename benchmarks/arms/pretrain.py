"""The other arm of the members' benchmark: K single models, each with torch's own fused AdamW, one after another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from forethought.core import rng
from forethought.nn import LanguageModel, TransformerConfig
from forethought.pretrain.members import MembersConfig


def separate_steps(settings: MembersConfig, shape: TransformerConfig, count: int) -> Callable[[], list[Tensor]]:
    """Return a function that takes one step of each of K models: forward, loss, backward, clip, AdamW; gives losses.

    First weights, tokens and rates are those of the batched arm, so the losses must be the same; the code is another.
    """
    fit = settings.fit
    models = [LanguageModel(shape, seed=seed) for seed in range(count)]
    optimisers = [adamw(model, fit.optimiser.lr, fit.optimiser.weight_decay) for model in models]
    drawn = rng.generator(0, "pretrain.speed").integers(0, shape.vocab_size, (count, fit.batch_size, fit.context))
    tokens, targets = torch.from_numpy(drawn), torch.from_numpy(np.roll(drawn, -1, axis=-1))

    def step() -> list[Tensor]:
        losses: list[Tensor] = []
        for k, (model, optimiser) in enumerate(zip(models, optimisers, strict=True)):
            loss = functional.cross_entropy(model(tokens[k]).flatten(0, 1), targets[k].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        return losses

    return step


def adamw(model: LanguageModel, lr: float, decay: float) -> torch.optim.AdamW:
    """Return fused AdamW that decays matrices, and neither norms nor the token embedding."""
    plain = [p for name, p in model.named_parameters() if p.ndim < 2 or name == "embedding.weight"]
    kept = {id(parameter) for parameter in plain}
    matrices = [p for p in model.parameters() if id(p) not in kept]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
